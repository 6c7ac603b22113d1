// Rows of warps, and neighbours in memory that one thread takes at a time: a warp that reads 16 bytes a thread asks for
// 512 bytes at once, which fills the memory's bandwidth with few threads and few instructions.
#pragma once

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {

// Lies at a multiple of its size, or of 16 bytes where it is longer.
template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
  T v[count];
};

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <int count, class T>
__device__ Pack<T, count> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, count>*>(from);
}
template <int count, class T>
__device__ void store_pack(T* to, const Pack<T, count>& pack) {
  *reinterpret_cast<Pack<T, count>*>(to) = pack;
}

// A warp takes row after row: for (row = first_row(); row < rows; row += row_stride()), launched as
// blocks_for_rows(rows).
inline constexpr int kLanes = 32;
inline constexpr int kRowsOfBlock = kThreads / kLanes;
__device__ inline int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kLanes;
}
__device__ inline int64_t first_row() {
  return int64_t{blockIdx.x} * kRowsOfBlock + threadIdx.x / kLanes;
}
__device__ inline int64_t row_stride() {
  return int64_t{gridDim.x} * kRowsOfBlock;
}
inline unsigned blocks_for_rows(int64_t rows) {
  return blocks_for(rows * kLanes);
}

// Calls f.template operator()<count>() with count = kPack<T>, or 1 where a row of `width` elements
// or one of the addresses (null: not used) is no multiple of that.
template <class T, class F, class... Address>
void with_packs(int64_t width, const F& f, const Address*... addresses) {
  const bool aligned =
      width % kPack<T> == 0 && (... && (reinterpret_cast<uintptr_t>(addresses) % 16 == 0));
  if (aligned)
    f.template operator()<kPack<T>>();
  else
    f.template operator()<1>();
}

}  // namespace amur::cuda
