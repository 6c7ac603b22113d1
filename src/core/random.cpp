#include "src/core/random.h"

#include "src/core/error.h"

namespace amur {

KeyedPermutation::KeyedPermutation(RandomKey key, uint64_t n) : key_(key), n_(n), half_bits_(1) {
  while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
}

uint64_t KeyedPermutation::encrypt(uint64_t x) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = x >> half_bits_, right = x & mask;
  for (uint64_t round = 0; round < 4; ++round) {
    const uint64_t mixed = key_.at(right, round).v[0] & mask;
    const uint64_t next = left ^ mixed;
    left = right;
    right = next;
  }
  return (left << half_bits_) | right;
}

uint64_t KeyedPermutation::operator()(uint64_t i) const {
  AMUR_CHECK(i < n_, "{} of {}", i, n_);
  // Walk the cycle until it is back inside; at most four steps on average, since 4^half_bits < 4 n.
  do {
    i = encrypt(i);
  } while (i >= n_);
  return i;
}

}  // namespace amur
