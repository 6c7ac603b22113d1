// exp and erf on vectors. f32: polynomials, exp within 2 ulp, erf within 2e-7; f64: the C library,
// lane by lane.
#pragma once

#include "kernels/cpu/simd.h"

namespace amur::cpu::AMUR_ISA {

// 0 below -87.3 and infinite above 88.3: no denormal results.
inline Vec<float> exp_of(const Vec<float>& x) {
  const float low = -87.3f, high = 88.3f;
  Vec<float> c = x < low ? broadcast(low) : x;
  c = c > high ? broadcast(high) : c;
  // c = n ln 2 + r with |r| <= ln(2)/2; adding 1.5 * 2^23 rounds to an integer.
  const float magic = 0x1.8p23f;
  const Vec<float> shifted = c * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n by its exponent bits. A NaN goes through the product, whatever its n was.
  const Vec<int32_t> power = (std::bit_cast<Vec<int32_t>>(shifted) << 23) + (127 << 23);
  const Vec<float> result = p * std::bit_cast<Vec<float>>(power);
  const Vec<float> bounded = x < low ? Vec<float>{} : result;
  return x > high ? broadcast(std::numeric_limits<float>::infinity()) : bounded;
}

// A rational function of x^2, fitted for the least maximal error (2e-8 before rounding) on
// |x| <= 3.95, beyond which erf is 1 to single precision.
inline Vec<float> erf_of(const Vec<float>& x) {
  const float edge = 3.95f;
  Vec<float> c = x < -edge ? broadcast(-edge) : x;
  c = c > edge ? broadcast(edge) : c;
  const Vec<float> t = c * c;
  Vec<float> p = t * 2.011948652e-06f + 2.875161473e-04f;
  p = p * t + 3.914590447e-03f;
  p = p * t + 5.319884313e-02f;
  p = p * t + 1.939751860e-01f;
  p = p * t + 1.128379010e+00f;
  Vec<float> q = t * 3.783733009e-05f + 1.197490184e-03f;
  q = q * t + 1.526536396e-02f;
  q = q * t + 1.155655085e-01f;
  q = q * t + 5.052375543e-01f;
  q = q * t + 1.0f;
  return c * p / q;
}

template <class F>
inline Vec<double> by_lane(const Vec<double>& x, F f) {
  Vec<double> y{};
  for (int i = 0; i < kLanes<double>; ++i) y[i] = f(x[i]);
  return y;
}
inline Vec<double> exp_of(const Vec<double>& x) {
  return by_lane(x, [](double v) { return std::exp(v); });
}
inline Vec<double> erf_of(const Vec<double>& x) {
  return by_lane(x, [](double v) { return std::erf(v); });
}

// What kernels/activation_math.h asks for.
template <class A>
struct VectorMath {
  using Value = Vec<A>;
  using Scalar = A;
  static Value exp(const Value& x) { return exp_of(x); }
  static Value erf(const Value& x) { return erf_of(x); }
};

}  // namespace amur::cpu::AMUR_ISA
