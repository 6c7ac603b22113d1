// What an optimizer does to one element, for C++ and CUDA. Inlined by force: the sources that use
// it are compiled for several instruction sets, and the linker must not share a copy between them.
#pragma once

#include <cmath>

#include "src/core/random.h"

#define AMUR_RULE AMUR_HOST_DEVICE __attribute__((always_inline))

namespace amur {

// -1, 0 or 1; 0 for NaN.
template <class T>
AMUR_RULE inline T sign_of(T x) {
  return static_cast<T>(x > T{0}) - static_cast<T>(x < T{0});
}

// Tiger (Su Jianlin, kexue.fm/archives/9512): m is the new momentum.
template <class T>
AMUR_RULE inline T sign_step(T theta, T m, T rate, T decay) {
  return theta - rate * (sign_of(m) + decay * theta);
}

// A sign step that becomes proportional where |m| is below `threshold`, so that it comes to rest.
template <class T>
AMUR_RULE inline T bounded_step(T theta, T m, T rate, T threshold) {
  const T u = m / threshold;
  return theta - rate * (u > T{1} ? T{1} : u < T{-1} ? T{-1} : u);
}

// Lion (Chen et al., arXiv 2302.06675).
template <class T>
struct LionRule {
  T rate, decay, beta1, beta2;

  AMUR_RULE void operator()(T g, T& m, T& theta) const {
    const T u = beta1 * m + (T{1} - beta1) * g;
    theta -= rate * (sign_of(u) + decay * theta);
    m = beta2 * m + (T{1} - beta2) * g;
  }
};

// AdamW (Loshchilov and Hutter, arXiv 1711.05101). The corrections are 1 - beta^t.
template <class T>
struct AdamWRule {
  T rate, decay, beta1, beta2, epsilon, correction1, correction2;

  AMUR_RULE void operator()(T g, T& m, T& v, T& theta) const {
    m = beta1 * m + (T{1} - beta1) * g;
    v = beta2 * v + (T{1} - beta2) * g * g;
    const T step = (m / correction1) / (std::sqrt(v / correction2) + epsilon);
    theta -= rate * (step + decay * theta);
  }
};

}  // namespace amur
