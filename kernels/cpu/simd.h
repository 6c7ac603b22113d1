// Vectors of the instruction set that this file is compiled for.
//
// Sources that include it are compiled once per instruction set (kernels/CMakeLists.txt); AMUR_ISA
// names the namespace, so the copies never collide. Rows are processed with whole vectors only, the
// last one padded, so that an element's bits do not depend on where in a row it stands.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "src/core/dtype.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace amur::cpu::AMUR_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class A>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class A, int lanes = kLanes<A>>
struct VecOf {
  typedef A type __attribute__((vector_size(lanes * sizeof(A))));
};
template <class A>
using Vec = typename VecOf<A>::type;  // A: float, double, or an integer of their size
template <class A>
using IntOf = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
using Halves = typename VecOf<uint16_t, kLanes<float>>::type;

template <class A>
inline Vec<A> broadcast(A a) {
  return a - Vec<A>{};
}

// T: what lies in memory (f32, bf16, f64); the vector holds AccumulateType<T>.
template <class T>
inline Vec<AccumulateType<T>> load(const T* p) {
  if constexpr (std::is_same_v<T, bf16>) {
    Halves h;
    std::memcpy(&h, p, sizeof(h));
    const Vec<uint32_t> wide = __builtin_convertvector(h, Vec<uint32_t>) << 16;
    return std::bit_cast<Vec<float>>(wide);
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}
template <class T>
inline void store(T* p, const Vec<AccumulateType<T>>& v) {
  if constexpr (std::is_same_v<T, bf16>) {
    const auto b = std::bit_cast<Vec<uint32_t>>(v);
    const Vec<uint32_t> rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    const Vec<uint32_t> quiet = (b >> 16) | 0x40u;
    const Vec<uint32_t> bits = (b & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    const Halves h = __builtin_convertvector(bits, Halves);
    std::memcpy(static_cast<void*>(p), &h, sizeof(h));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

// The first n < kLanes elements; the others read as 0 and are not written.
template <class T>
inline Vec<AccumulateType<T>> load_first(const T* p, int64_t n) {
  T padded[kLanes<AccumulateType<T>>] = {};
  std::copy_n(p, n, padded);
  return load(padded);
}
template <class T>
inline void store_first(T* p, const Vec<AccumulateType<T>>& v, int64_t n) {
  T padded[kLanes<AccumulateType<T>>];
  store(padded, v);
  std::copy_n(padded, n, p);
}

// A position in a row: how many elements a vector there holds, and loads and stores of so many.
// `for_each_vector(n, f)` calls f(Span) for 0..n-1; the whole vectors are known at compile time.
struct Whole {
  int64_t at;
  template <class T>
  Vec<AccumulateType<T>> load_from(const T* row) const {
    return load(row + at);
  }
  template <class T>
  void store_to(T* row, const Vec<AccumulateType<T>>& v) const {
    store(row + at, v);
  }
};
struct Partial {
  int64_t at, count;
  template <class T>
  Vec<AccumulateType<T>> load_from(const T* row) const {
    return load_first(row + at, count);
  }
  template <class T>
  void store_to(T* row, const Vec<AccumulateType<T>>& v) const {
    store_first(row + at, v, count);
  }
};
template <class A, class F>
inline void for_each_vector(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) f(Whole{i});
  if (i < n) f(Partial{i, n - i});
}

// In a fixed order: halves are added until one lane is left.
template <class A>
inline A sum_lanes(const Vec<A>& v) {
  A lane[kLanes<A>];
  std::memcpy(lane, &v, sizeof(v));
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
template <class A>
inline A max_lanes(const Vec<A>& v) {
  A lane[kLanes<A>];
  std::memcpy(lane, &v, sizeof(v));
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

}  // namespace amur::cpu::AMUR_ISA
