// Dropout by the masks of kernels/packed.h, for warps that take tokens one after another.
#pragma once

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/packs.cuh"
#include "kernels/dropout_math.h"

namespace amur::cuda {

// What a kernel has to know of a site.
struct DropoutMasks {
  int64_t sequences = 0;
  const int32_t* cu = nullptr;
  const int64_t* keys = nullptr;
  uint64_t layer = 0, site = 0;
  uint32_t threshold = 0;  // 0: nothing is dropped
  double factor = 1;       // of what stays
};
inline DropoutMasks masks_of(const PackedSequences& packed, const DropoutSite& site) {
  if (site.probability <= 0) return {};
  return {packed.sequences(),
          packed.cu_seqlens.as<int32_t>(),
          packed.dropout_keys.as<int64_t>(),
          site.layer,
          site.site,
          dropout_threshold(site.probability),
          1 / (1 - site.probability)};
}

// Of one token after another. The key is that of the sequence: found and mixed again only where a
// sequence ends.
template <class A>
class TokenMasks {
 public:
  __device__ explicit TokenMasks(const DropoutMasks& masks)
      : masks_(masks), factor_(static_cast<A>(masks.factor)) {}

  // By all lanes of a warp, with the same token.
  __device__ void go_to(int64_t token) {
    if (masks_.threshold == 0) return;
    if (token < begin_ || token >= end_) {
      const int32_t* cu = masks_.cu;
      const int64_t s =
          warp_last_not_after(token, masks_.sequences, [cu](int64_t k) { return int64_t{cu[k]}; });
      begin_ = cu[s];
      end_ = cu[s + 1];
      key_ = dropout_key(masks_.keys[s], masks_.layer, masks_.site);
    }
    position_ = static_cast<uint64_t>(token - begin_);
  }

  // Elements j .. j + pack - 1 of the token, j a multiple of `pack`.
  template <int pack>
  __device__ void drop(int64_t j, A (&values)[pack]) const {
    static_assert(8 % pack == 0);
    if (masks_.threshold == 0) return;
    const Philox p = philox(key_, position_, static_cast<uint64_t>(j / 8));
    const int first = static_cast<int>(j % 8);
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      const int lane = first + e;
      // No array in local memory.
      const uint32_t word = lane < 4 ? (lane < 2 ? p.v[0] : p.v[1]) : (lane < 6 ? p.v[2] : p.v[3]);
      const uint32_t bits = lane % 2 == 0 ? word & 0xffffu : word >> 16;
      values[e] = bits < masks_.threshold ? A(0) : values[e] * factor_;
    }
  }

 private:
  DropoutMasks masks_;
  A factor_;
  int64_t begin_ = 0, end_ = 0;
  uint64_t key_ = 0, position_ = 0;
};

// residual + dropout(x), a pack of a row in two steps, so that all of them can be under way before
// the first mask is drawn. `residual` may be null.
template <int pack, class T>
struct Addends {
  const T *x, *residual;

  struct Loaded {
    Pack<T, pack> x, residual;
  };
  __device__ Loaded load(int64_t at) const {
    return {load_pack<pack>(x + at), residual ? load_pack<pack>(residual + at) : Pack<T, pack>{}};
  }
  // Elements j .. of the mask's token, rounded.
  template <class A>
  __device__ Pack<T, pack> sum(const TokenMasks<A>& mask, int64_t j, const Loaded& loaded) const {
    A values[pack];
    widen(loaded.x, values);
    mask.drop(j, values);
    if (residual) {
      A past[pack];
      widen(loaded.residual, past);
#pragma unroll
      for (int e = 0; e < pack; ++e) values[e] = past[e] + values[e];
    }
    return rounded<T>(values);
  }
};

}  // namespace amur::cuda
