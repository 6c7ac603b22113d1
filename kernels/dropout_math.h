// The dropout mask of kernels/packed.h, for C++ and CUDA.
#pragma once

#include "kernels/packed.h"
#include "src/core/random.h"

namespace amur {

// `sequence_key`: the bits of PackedSequences::dropout_keys.
AMUR_HOST_DEVICE inline uint64_t dropout_key(int64_t sequence_key, uint64_t layer, uint64_t site) {
  return RandomKey(static_cast<uint64_t>(sequence_key)).fold(layer).fold(site).value();
}
// Elements whose 16-bit lane is below this are dropped.
inline uint32_t dropout_threshold(double probability) {
  return static_cast<uint32_t>(std::lround(probability * 65536));
}
AMUR_HOST_DEVICE inline uint32_t dropout_lane(uint64_t key, uint64_t position, uint64_t element) {
  const Philox p = philox(key, position, element / 8);
  const uint64_t lane = element % 8;
  return (p.v[lane / 2] >> (16 * (lane % 2))) & 0xffffu;
}

}  // namespace amur
