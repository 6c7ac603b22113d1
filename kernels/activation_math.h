// Values and slopes of the activations, for C++ and CUDA. `Math` brings Value (a number, or a
// vector of them), its Scalar, exp and erf.
#pragma once

#include "src/core/random.h"

namespace amur {

template <class Math>
struct ActivationMath {
  using V = typename Math::Value;
  using S = typename Math::Scalar;

  // Value and d(value)/dx.
  struct Both {
    V value, slope;
  };

  AMUR_HOST_DEVICE static V normal_cdf(const V& x) {
    return S(0.5) + S(0.5) * Math::erf(x * S(0.70710678118654752440));
  }
  AMUR_HOST_DEVICE static V gelu(const V& x) { return x * normal_cdf(x); }
  AMUR_HOST_DEVICE static Both gelu_slope(const V& x) {
    const V cdf = normal_cdf(x);
    const V density = S(0.39894228040143267794) * Math::exp(S(-0.5) * x * x);
    return {x * cdf, cdf + x * density};
  }

  AMUR_HOST_DEVICE static V sigmoid(const V& x) { return S(1) / (S(1) + Math::exp(-x)); }
  // The tanh form: 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
  AMUR_HOST_DEVICE static V gelu_tanh(const V& x) {
    return x * sigmoid(S(2 * 0.79788456080286535588) * (x + S(0.044715) * x * x * x));
  }
  AMUR_HOST_DEVICE static Both gelu_tanh_slope(const V& x) {
    const V s = sigmoid(S(2 * 0.79788456080286535588) * (x + S(0.044715) * x * x * x));
    const V du = S(2 * 0.79788456080286535588) * (S(1) + S(3 * 0.044715) * x * x);
    return {x * s, s + x * s * (S(1) - s) * du};
  }

  AMUR_HOST_DEVICE static V silu(const V& x) { return x * sigmoid(x); }
  AMUR_HOST_DEVICE static Both silu_slope(const V& x) {
    const V s = sigmoid(x);
    return {x * s, s + x * s * (S(1) - s)};
  }
};

}  // namespace amur
