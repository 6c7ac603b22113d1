// Frequencies of positional encodings, in double, for C++ and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "src/core/host_device.h"

namespace amur {

// Angle per position of element j (and of its partner) of a head: see `rotary`.
AMUR_HOST_DEVICE inline double rotary_frequency(double base, int64_t j, int64_t period) {
  return std::pow(base, -2.0 * static_cast<double>(j % (period / 2)) / static_cast<double>(period));
}

// Angle per position of column j of [T, width]: see `add_sinusoidal_positions`. Even columns take
// its sine, odd ones its cosine.
AMUR_HOST_DEVICE inline double sinusoidal_frequency(int64_t j, int64_t width) {
  return std::pow(10000.0, -static_cast<double>(j / 2 * 2) / static_cast<double>(width));
}

}  // namespace amur
