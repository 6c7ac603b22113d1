// Vectorised parts of kernels/optimizer_update.h: n elements at a time.
#pragma once

#include <cstdint>

#include "kernels/optimizer_rules.h"

namespace amur::cpu {

template <class T>
struct OptimizerKernels {
  void (*sign)(const T* m, int64_t n, T rate, T decay, T* theta);
  // One row; its step size is rate max(RMS(theta), rms_floor).
  void (*sign_relative)(const T* m, int64_t n, double rate, double rms_floor, T decay, T* theta);
  void (*bounded)(const T* m, int64_t n, T rate, T threshold, T* theta);
  void (*lion)(const LionRule<T>& rule, const T* g, int64_t n, T* m, T* theta);
  void (*adamw)(const AdamWRule<T>& rule, const T* g, int64_t n, T* m, T* v, T* theta);
};

}  // namespace amur::cpu
