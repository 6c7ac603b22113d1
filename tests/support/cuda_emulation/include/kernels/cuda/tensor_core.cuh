// In place of the repository's file of this name: the same functions, lane by lane as NVIDIA's PTX
// ISA 9.0 says who holds what. Written from its tables, not from the kernels that use them.
#pragma once

#include <cuda_runtime.h>

#include "src/core/dtype.h"
#include "src/core/host_device.h"

namespace amur::cuda {

inline int lane_index() {
  return static_cast<int>(threadIdx.x) % 32;
}

inline float half_of(uint32_t two, unsigned upper) {
  return std::bit_cast<float>(upper ? two & 0xffff0000u : two << 16);
}
inline void need_alignment(const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0)
    emulation::fail(fmt::format("an address is not a multiple of {}", bytes));
}

// "Matrix Fragments for mma.m16n8k16 with floating point type". Products are exact, sums in f32 and
// in order; a tensor core's are in an order and precision of its own.
struct MmaFactors {
  uint32_t a[4], b[2];
};
inline void mma_bf16(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4],
                     emulation::Where where = emulation::Where::current()) {
  const MmaFactors mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto multiply = [](const emulation::Lane(&lanes)[32]) {
    float left[16][16], right[16][8], sums[16][8] = {};
    for (unsigned l = 0; l < 32; ++l) {
      const auto& of_lane = *static_cast<const MmaFactors*>(lanes[l].in);
      const unsigned group = l >> 2, in_group = l % 4;
      for (unsigned i = 0; i < 8; ++i) {
        const unsigned row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
        const unsigned column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        left[row][column] = half_of(of_lane.a[i / 2], i % 2);
      }
      for (unsigned i = 0; i < 4; ++i)
        right[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = half_of(of_lane.b[i / 2], i % 2);
    }
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 8; ++j) sums[i][j] += left[i][k] * right[k][j];
    for (unsigned l = 0; l < 32; ++l) {
      auto* of_lane = static_cast<float*>(lanes[l].out);
      for (unsigned i = 0; i < 4; ++i)
        of_lane[i] += sums[(l >> 2) + (i < 2 ? 0 : 8)][l % 4 * 2 + (i & 1)];
    }
  };
  emulation::with_warp({&mine, c}, multiply, where);
}

// "Warp-level matrix load instruction: ldmatrix".
inline void load_matrices(const bf16* row, uint32_t (&r)[4],
                          emulation::Where where = emulation::Where::current()) {
  need_alignment(row, 16);
  const auto load = [](const emulation::Lane(&lanes)[32]) {
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned l = 0; l < 32; ++l)
        std::memcpy(static_cast<uint32_t*>(lanes[l].out) + m,
                    static_cast<const bf16*>(lanes[m * 8 + l / 4].in) + l % 4 * 2, 4);
  };
  emulation::with_warp({row, r}, load, where);
}
inline void load_matrices_transposed(const bf16* row, uint32_t (&r)[4],
                                     emulation::Where where = emulation::Where::current()) {
  need_alignment(row, 16);
  const auto load = [](const emulation::Lane(&lanes)[32]) {
    const auto element = [&](unsigned m, unsigned i, unsigned j) {
      return uint32_t{(static_cast<const bf16*>(lanes[m * 8 + i].in) + j)->bits};
    };
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned l = 0; l < 32; ++l)
        static_cast<uint32_t*>(lanes[l].out)[m] =
            element(m, l % 4 * 2, l / 4) | element(m, l % 4 * 2 + 1, l / 4) << 16;
  };
  emulation::with_warp({row, r}, load, where);
}

// "cp.async"
inline void copy_16_async(void* to, const void* from, bool exists) {
  emulation::copy_async(to, from, 16, exists);
}
inline void copy_4_async(void* to, const void* from, bool exists) {
  emulation::copy_async(to, from, 4, exists);
}
inline void wait_for_copies() {
  emulation::wait_for_copies();
}

// "cvt"
inline uint32_t pack_bf16(float low, float high) {
  return bf16(low).bits | uint32_t{bf16(high).bits} << 16;
}
// "ex2", but correctly rounded
inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
// "rcp", but correctly rounded
inline float reciprocal_approximate(float x) {
  return 1 / x;
}

}  // namespace amur::cuda
