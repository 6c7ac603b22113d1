// Rows of warps, and neighbours in memory that one thread takes at a time: a warp that reads 16
// bytes a thread asks for 512 bytes at once, which fills the memory's bandwidth with few threads
// and few instructions.
#pragma once

#include <bit>
#include <iterator>
#include <type_traits>

#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace amur::cuda {

// Lies at a multiple of its size, or of 16 bytes where it is longer.
template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
  T v[count];
};

// Elements of T in 16 bytes; f64, which is for proofs, goes one by one.
template <class T>
inline constexpr int kPack = sizeof(T) < 8 ? 16 / static_cast<int>(sizeof(T)) : 1;

// The bytes of a pack, as what the compiler reads and writes at once, whatever it knows of them.
template <int bytes>
struct Words {
  using Word = std::conditional_t<
      bytes % 16 == 0, uint4,
      std::conditional_t<bytes == 8, uint64_t, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;
  Word v[bytes / sizeof(Word)];
};
template <class T, int count>
using WordsOf = Words<static_cast<int>(sizeof(T)) * count>;

template <int count, class T>
__device__ WordsOf<T, count> load_words(const T* from) {
  using Words = WordsOf<T, count>;
  Words words;
  for (size_t i = 0; i < std::size(words.v); ++i)
    words.v[i] = reinterpret_cast<const typename Words::Word*>(from)[i];
  return words;
}
template <int count, class T>
__device__ Pack<T, count> load_pack(const T* from) {
  return std::bit_cast<Pack<T, count>>(load_words<count>(from));
}
template <class Word>
__device__ void store_word(Word* to, Word word) {
  *to = word;
}
// The assignment of a uint4 is four stores, which the compiler joins in some loops only.
__device__ inline void store_word(uint4* to, uint4 word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}
// Into GPU memory.
template <int count, class T>
__device__ void store_pack(T* to, const Pack<T, count>& pack) {
  using Words = WordsOf<T, count>;
  const auto words = std::bit_cast<Words>(pack);
  for (size_t i = 0; i < std::size(words.v); ++i)
    store_word(reinterpret_cast<typename Words::Word*>(to) + i, words.v[i]);
}

// The values of a pack to compute with, and a pack of values, rounded: in bf16 two at a time.
template <int count>
struct Pairs {  // of bf16, the first one in the lower half
  uint32_t v[count / 2];
};
template <class A, class T, int count>
__device__ void widen(const Pack<T, count>& pack, A (&values)[count]) {
  if constexpr (std::is_same_v<T, bf16> && count % 2 == 0) {
    const auto pairs = std::bit_cast<Pairs<count>>(pack);
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      values[2 * i] = std::bit_cast<float>(pairs.v[i] << 16);
      values[2 * i + 1] = std::bit_cast<float>(pairs.v[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int e = 0; e < count; ++e) values[e] = static_cast<A>(pack.v[e]);
  }
}
template <class T, class A, int count>
__device__ Pack<T, count> rounded(const A (&values)[count]) {
  if constexpr (std::is_same_v<T, bf16> && count % 2 == 0) {
    Pairs<count> pairs;
#pragma unroll
    for (int i = 0; i < count / 2; ++i) pairs.v[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
    return std::bit_cast<Pack<T, count>>(pairs);
  } else {
    Pack<T, count> pack;
#pragma unroll
    for (int e = 0; e < count; ++e) pack.v[e] = T(values[e]);
    return pack;
  }
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

// A warp takes a run of neighbouring rows: a share of them, launched as blocks_for_runs(rows).
struct RowRun {
  int64_t first, end;
};
__device__ inline RowRun run_of_warp(int64_t rows) {
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / kLanes);
  const int64_t warp = int64_t{blockIdx.x} * (blockDim.x / kLanes) + threadIdx.x / kLanes;
  return {rows * warp / warps, rows * (warp + 1) / warps};
}

// f(row, first column) for every pack of a matrix.
template <int pack, class F>
__device__ void for_packs(int64_t rows, int64_t width, const F& f) {
  for (int64_t row = first_row(); row < rows; row += row_stride())
    for (int64_t j = lane_of_warp() * pack; j < width; j += kLanes * pack) f(row, j);
}

template <size_t bytes, class... Address>
bool at_multiples_of(const Address*... addresses) {
  return (... && (reinterpret_cast<uintptr_t>(addresses) % bytes == 0));
}
// Whether packs can lie at all of the addresses (null: not used).
template <int count, class... T>
bool packs_at(const T*... addresses) {
  return (... && at_multiples_of<alignof(Pack<T, count>)>(addresses));
}
// Calls f.template operator()<count>(), or <1> where a row of `width` elements is no multiple of
// `count`, or one of the addresses no place for a pack.
template <int count, class F, class... T>
void with_packs_of(int64_t width, const F& f, const T*... addresses) {
  if constexpr (count > 1)
    if (width % count == 0 && packs_at<count>(addresses...)) return f.template operator()<count>();
  f.template operator()<1>();
}
// The same with count = kPack<T>, where the others' packs are no shorter than 16 bytes.
template <class T, class F, class... Address>
void with_packs(int64_t width, const F& f, const Address*... addresses) {
  if constexpr (kPack<T> > 1)
    if (width % kPack<T> == 0 && at_multiples_of<16>(addresses...))
      return f.template operator()<kPack<T>>();
  f.template operator()<1>();
}

}  // namespace amur::cuda
