#pragma once

#include "kernels/cpu/isa.h"
#include "src/core/dtype.h"

namespace amur::cpu {

template <class T, class P = AccumulateType<T>>
struct ElementwiseKernels {
  void (*axpy)(int64_t n, P alpha, const T* x, T* y);
  void (*scale)(int64_t n, P alpha, T* x);
  void (*add)(int64_t n, const T* a, const T* b, T* y);
  void (*add_bias)(int64_t rows, int64_t width, const P* bias, T* y);
  // partial [ceil(rows / kColumnSumRows), width], not initialised
  void (*column_sums)(int64_t rows, int64_t width, P alpha, const T* dy, P* partial, P* sink);
  void (*gate)(int64_t n, const P* gate, const T* x, T* y);
  // sum dy (y - x)
  double (*gate_backward)(int64_t n, const P* gate, const T* dy, const T* x, T* y, T* dx);
  double (*sum_of_squares)(int64_t n, const T* x);
  bool (*all_finite)(int64_t n, const T* x);
  void (*to_f32)(int64_t n, const T* from, float* to);
  void (*from_f32)(int64_t n, const float* from, T* to);
};
inline constexpr int64_t kColumnSumRows = 256;

}  // namespace amur::cpu
