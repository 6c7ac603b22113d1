// 64-bit hashes with fixed, documented values: text ids, data splits, checksums of names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace amur {

// FNV-1a, 64 bit: fnv1a("a") == 0xaf63dc4c8601ec8c.
constexpr uint64_t fnv1a(std::string_view bytes, uint64_t hash = 0xcbf29ce484222325u) {
  for (char c : bytes) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3u;
  }
  return hash;
}

// Bijective mixer of 64 bits (SplitMix64's finaliser).
constexpr uint64_t mix64(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace amur
