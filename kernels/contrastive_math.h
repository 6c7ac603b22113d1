// The losses of single pairs, for C++ and CUDA.
#pragma once

#include <cmath>

#include "src/core/host_device.h"

namespace amur {

// log(1 + exp(x))
AMUR_HOST_DEVICE inline double softplus(double x) {
  return (x > 0 ? x : 0.0) + std::log1p(std::exp(-std::fabs(x)));
}
AMUR_HOST_DEVICE inline double sigmoid(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

// A right pair of logit x: its loss, and what dL/dx is.
struct RightPair {
  double loss, gradient;
};
AMUR_HOST_DEVICE inline RightPair right_pair(double weight, double x) {
  return {weight * softplus(-x), -weight * sigmoid(-x)};
}

}  // namespace amur
