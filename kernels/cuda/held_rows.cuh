// Rows that a warp goes over more than once. One of up to kHeldRow elements stays in the registers
// of its lanes, so that memory is read once; a longer one, or one that is no whole number of packs,
// is read again.
#pragma once

#include "kernels/cuda/column_sums.cuh"

namespace amur::cuda {

// Packs of a lane.
template <int pack, bool held>
inline constexpr int kPacksOfRow = held ? static_cast<int>(kHeldRow) / (kLanes * pack) : 1;

// f(k, j) for the packs of this lane, that at element j being its k-th; k is 0 where rows are not
// held.
template <int pack, bool held, class F>
__device__ void for_row(int64_t width, const F& f) {
  const int64_t own = lane_of_warp() * pack;
  if constexpr (held) {
#pragma unroll
    for (int k = 0; k < kPacksOfRow<pack, held>; ++k)
      if (const int64_t j = own + k * kLanes * pack; j < width) f(k, j);
  } else {
    for (int64_t j = own; j < width; j += kLanes * pack) f(0, j);
  }
}

// By a block of kSumThreads threads, whose warps have summed up over their rows, which are held:
// partial[block, i, :] = the sum of sums[i] over the warps, one after another.
template <int count, int packs, int pack, class P>
__device__ void leave_sums(const P (&sums)[count][packs][pack], int64_t width, P* partial) {
  // Element e of a lane's k-th pack at k * pack + e: lanes side by side.
  constexpr int kLine = kLanes + 1;
  __shared__ P of_block[count][packs * pack * kLine];
  for (int w = 0; w < kSumWarps; ++w) {
    if (static_cast<int>(threadIdx.x) / kLanes == w) {
#pragma unroll
      for (int i = 0; i < count; ++i)
#pragma unroll
        for (int k = 0; k < packs; ++k)
#pragma unroll
          for (int e = 0; e < pack; ++e) {
            P& sum = of_block[i][(k * pack + e) * kLine + lane_of_warp()];
            sum = w == 0 ? sums[i][k][e] : sum + sums[i][k][e];
          }
    }
    __syncthreads();
  }
  for (int i = 0; i < count; ++i)
    for (int j = static_cast<int>(threadIdx.x); j < width; j += kSumThreads) {
      const int line = j / (kLanes * pack) * pack + j % pack, lane = j / pack % kLanes;
      partial[(count * blockIdx.x + i) * width + j] = of_block[i][line * kLine + lane];
    }
}

// Calls f.template operator()<pack, held, T>(). `addresses`: of the rows, null where not used. f64
// is not held: it takes twice the registers.
template <class F, class... Address>
void dispatch_rows(DType dtype, int64_t width, const char* op, const F& f, Address... addresses) {
  dispatch_float(dtype, op, [&]<class T>() {
    const auto choose = [&]<int pack>() {
      if constexpr (sizeof(T) < 8 && pack > 1) {
        if (width <= kHeldRow) return f.template operator()<pack, true, T>();
      }
      f.template operator()<pack, false, T>();
    };
    with_packs<T>(width, choose, addresses...);
  });
}

}  // namespace amur::cuda
