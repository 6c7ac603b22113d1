#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/norm.h"

namespace amur::cpu {

// Null pointers where the tensor of kernels/norm.h is undefined. P: the parameter type.
template <class T, class P = AccumulateType<T>>
struct NormForward {
  NormKind kind;
  int64_t rows, width, statistics_width;
  P eps;
  const T* x;
  const P *gain, *bias;
  T* y;
  P *mean, *rstd;
};
template <class T, class P = AccumulateType<T>>
struct NormBackward {
  NormKind kind;
  int64_t rows, width, statistics_width;
  const T *dy, *x;
  const P *gain, *mean, *rstd;
  const T* residual;
  T* dx;
  P sink_scale;
  P *gain_sink, *bias_sink;
  P* partial;  // [ceil(rows / kNormBlock), 2, width], not initialised
};

// Rows whose gain and bias gradients are added up before they are added to the other blocks'.
inline constexpr int64_t kNormBlock = 64;

template <class T>
struct NormKernels {
  void (*forward)(const NormForward<T>&);
  void (*backward)(const NormBackward<T>&);
};

}  // namespace amur::cpu
