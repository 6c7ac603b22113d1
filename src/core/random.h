// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
//
// Every random value of Amur is a pure function of a key and a counter, so it does not depend on
// rank, chunk, thread or order. Usable from C++ and CUDA.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "src/core/host_device.h"

namespace amur {

struct Philox {
  uint32_t v[4];
};

AMUR_HOST_DEVICE inline Philox philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  Philox c{{static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
            static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.v[2];
    c = Philox{{static_cast<uint32_t>(p1 >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// A key that names a stream: RandomKey(seed).fold(purpose).fold(step)... Each fold mixes one value
// in; the order matters.
class RandomKey {
 public:
  AMUR_HOST_DEVICE explicit RandomKey(uint64_t seed) : key_(seed) {}

  AMUR_HOST_DEVICE RandomKey fold(uint64_t value) const {
    const Philox p = philox(key_, value, 0x416d7572u);
    return RandomKey(p.v[0] | (uint64_t{p.v[1]} << 32));
  }
  AMUR_HOST_DEVICE uint64_t value() const { return key_; }

  AMUR_HOST_DEVICE Philox at(uint64_t low, uint64_t high = 0) const {
    return philox(key_, low, high);
  }
  AMUR_HOST_DEVICE uint64_t bits64(uint64_t counter) const {
    const Philox p = at(counter);
    return p.v[0] | (uint64_t{p.v[1]} << 32);
  }
  // [0, 1)
  AMUR_HOST_DEVICE double uniform(uint64_t counter) const {
    return static_cast<double>(bits64(counter) >> 11) * 0x1.0p-53;
  }
  // [0, n) without noticeable bias (64-bit multiply-shift)
  AMUR_HOST_DEVICE uint64_t below(uint64_t counter, uint64_t n) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(bits64(counter)) * n) >> 64);
  }
  // Standard normal (Box-Muller)
  AMUR_HOST_DEVICE double normal(uint64_t counter) const {
    const Philox p = at(counter);
    const double u =
        (static_cast<double>((p.v[0] | (uint64_t{p.v[1]} << 32)) >> 11) + 1.0) * 0x1.0p-53;
    const double angle = 6.283185307179586476925 *
                         (static_cast<double>((p.v[2] | (uint64_t{p.v[3]} << 32)) >> 11) * 0x1.0p-53);
    return std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
  }

 private:
  uint64_t key_;
};

// The first fold of every key says what it is for, so that no two purposes share a stream.
enum class RandomPurpose : uint64_t {
  weights = 1,     // then: hash of the parameter's name; counter: global element index
  epoch_order,     // then: epoch
  source_draw,     // then: epoch
  positive_draw,   // then: epoch; counter: sample id
  subword_sampling,
  word_dropout,
  dropout,         // then: step, view, sample id, layer, site; counter: position, element block
  probe,           // gradient checks and tests
  bootstrap,       // of an evaluation; then: resample; counter: draw
  evaluation_split,  // held-out texts of a classifier; counter: identity of the text
  weight_rounding,   // to bf16; then: step, hash of the name; counter: block of global elements
};

// A permutation of 0..n-1 that needs no memory: a keyed Feistel network with cycle walking.
class KeyedPermutation {
 public:
  KeyedPermutation(RandomKey key, uint64_t n);
  uint64_t operator()(uint64_t i) const;  // i < n
  uint64_t size() const { return n_; }

 private:
  uint64_t encrypt(uint64_t x) const;
  RandomKey key_;
  uint64_t n_;
  int half_bits_;
};

}  // namespace amur
