// The lanes of kernels/dropout_math.h, several blocks of eight elements at once.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/dropout_math.h"

namespace amur::cpu::AMUR_ISA {

// Products of the low 32 bits of each 64-bit lane.
inline Vec<uint64_t> multiply_low(const Vec<uint64_t>& a, const Vec<uint64_t>& b) {
#if defined(__AVX512F__)
  // The form with a mask, because g++ 12 warns inside _mm512_mul_epu32.
  return std::bit_cast<Vec<uint64_t>>(
      _mm512_maskz_mul_epu32(0xff, std::bit_cast<__m512i>(a), std::bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return std::bit_cast<Vec<uint64_t>>(
      _mm256_mul_epu32(std::bit_cast<__m256i>(a), std::bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return std::bit_cast<Vec<uint64_t>>(
      _mm_mul_epu32(std::bit_cast<__m128i>(a), std::bit_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

inline constexpr int64_t kDropoutBlocks = kLanes<uint64_t>;  // computed at once
// Room for the lanes of n elements.
inline int64_t dropout_room(int64_t n) {
  const int64_t step = 8 * kDropoutBlocks;
  return (n + step - 1) / step * step;
}

// lanes[0 .. n) of elements 8 * first_block ..; up to dropout_room(n) are written.
inline void dropout_lanes(uint64_t key, uint64_t position, uint64_t first_block, int64_t n,
                          uint16_t* lanes) {
  if (n <= 16) {
    for (int64_t b = 0; 8 * b < n; ++b) {
      const Philox p = philox(key, position, first_block + static_cast<uint64_t>(b));
      for (int i = 0; i < 4; ++i) {
        lanes[8 * b + 2 * i] = static_cast<uint16_t>(p.v[i]);
        lanes[8 * b + 2 * i + 1] = static_cast<uint16_t>(p.v[i] >> 16);
      }
    }
    return;
  }
  using U = Vec<uint64_t>;
  const uint64_t low = 0xffffffffu;
  const U m0 = broadcast<uint64_t>(0xD2511F53u), m1 = broadcast<uint64_t>(0xCD9E8D57u);
  U step{};
  for (int i = 0; i < kDropoutBlocks; ++i) step[i] = static_cast<uint64_t>(i);
  for (int64_t at = 0; at < n; at += 8 * kDropoutBlocks) {
    const U block = step + (first_block + static_cast<uint64_t>(at / 8));
    U c0 = broadcast(position & low), c1 = broadcast(position >> 32), c2 = block & low,
      c3 = block >> 32;
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      // The upper halves of c0 and c2 are free to hold anything: the product does not read them.
      const U p0 = multiply_low(m0, c0), p1 = multiply_low(m1, c2);
      c0 = (p1 >> 32) ^ c1 ^ uint64_t { k0 };
      c1 = p1 & low;
      c2 = (p0 >> 32) ^ c3 ^ uint64_t { k1 };
      c3 = p0 & low;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const U front = c0 | (c1 << 32), back = c2 | (c3 << 32);
    uint64_t words[2 * kDropoutBlocks];
    for (int i = 0; i < kDropoutBlocks; ++i) {
      words[2 * i] = front[i];
      words[2 * i + 1] = back[i];
    }
    // Little-endian machines have lane 0 first; big-endian ones are not supported by the build.
    std::memcpy(lanes + at, words, sizeof(words));
  }
}

// x where the lane is kept, times `factor`; else 0.
template <class A>
inline Vec<A> dropped(const Vec<A>& x, const uint16_t* lanes, uint32_t threshold, A factor) {
  using Small = typename VecOf<uint16_t, kLanes<A>>::type;
  using Wide = Vec<IntOf<A>>;
  Small small;
  std::memcpy(&small, lanes, sizeof(small));
  const Wide wide = __builtin_convertvector(small, Wide);
  return wide >= static_cast<IntOf<A>>(threshold) ? x * factor : Vec<A>{};
}

}  // namespace amur::cpu::AMUR_ISA
