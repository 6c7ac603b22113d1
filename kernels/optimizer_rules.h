// What an optimizer does to one element, for C++ and CUDA. Inlined by force: the sources that use
// it are compiled for several instruction sets, and the linker must not share a copy between them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "src/core/dtype.h"
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

// x up or down to a neighbour in bf16: the 65536 values of `noise` (0 .. 65535, equally likely)
// give x as their mean, to the bit, and leave an x that is a bf16 as it is. A step that is small
// against the distance of neighbours, which rounding to nearest takes away whole, is so taken on
// average.
AMUR_RULE inline bf16 round_stochastic(float x, uint32_t noise) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  const uint32_t quiet = (bits & 0x7fffffu) != 0 ? 0x400000u : 0;  // keep NaN a NaN
  bf16 rounded;
  rounded.bits = static_cast<uint16_t>((finite ? bits + noise : bits | quiet) >> 16);
  return rounded;
}

// Where an element of a rank's part stands in the whole tensor, row-major: runs of so many elements
// follow each other at this distance. The default is that of a tensor which is here as a whole.
struct GlobalIndex {
  int64_t first = 0, run = std::numeric_limits<int64_t>::max(), distance = 0;

  AMUR_RULE int64_t of(int64_t local) const { return first + local / run * distance + local % run; }
};

// The noise of a tensor at a step is a function of the key and the element's place in the whole
// tensor alone, so that it does not depend on ranks, their shares, threads or device: 16 bits of
// Philox, eight elements a call, numbered as in kernels/dropout_math.h.
struct StochasticRounding {
  uint64_t key = 0;
  GlobalIndex index;
};

// What is kept of a value in a tensor of W, as the type that it is computed in.
AMUR_RULE inline float computed(bf16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}
AMUR_RULE inline float computed(float x) {
  return x;
}
AMUR_RULE inline double computed(double x) {
  return x;
}

}  // namespace amur
