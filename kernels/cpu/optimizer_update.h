// Vectorised parts of kernels/optimizer_update.h: n elements at a time.
#pragma once

#include <cstdint>

#include "kernels/optimizer_rules.h"

namespace amur::cpu {

// Weights from element `first` of their tensor on. f32 and f64 are not rounded.
template <class W>
struct Weights {
  W* theta;
  int64_t first;
  StochasticRounding rounding;
};

// W: weights, M: momenta.
template <class W, class M>
struct SignKernels {
  using T = AccumulateType<W>;
  void (*sign)(const M* m, int64_t n, T rate, T decay, const Weights<W>& weights);
  // One row; its step size is rate max(RMS(theta), rms_floor).
  void (*sign_relative)(const M* m, int64_t n, double rate, double rms_floor, T decay,
                        const Weights<W>& weights);
};

template <class W>
struct OptimizerKernels {
  using T = AccumulateType<W>;
  void (*bounded)(const T* m, int64_t n, T rate, T threshold, const Weights<W>& weights);
  void (*lion)(const LionRule<T>& rule, const T* g, int64_t n, T* m, const Weights<W>& weights);
  void (*adamw)(const AdamWRule<T>& rule, const T* g, int64_t n, T* m, T* v,
                const Weights<W>& weights);
};

}  // namespace amur::cpu
