// Packed sequences: the boundaries that attention, embedding lookup, pooling and dropout need.
#pragma once

#include "src/core/tensor.h"

namespace amur {

// S sequences with T tokens in all lie one behind the other in tensors of shape [T, ...].
struct PackedSequences {
  ConstTensorView cu_seqlens;  // [S+1] i32: sequence s holds tokens cu[s] .. cu[s+1]-1; never empty
  // [S] i64, the bits of a RandomKey: (seed, RandomPurpose::dropout, step, view, global sample id).
  // Undefined where no dropout is asked for.
  ConstTensorView dropout_keys;
  int64_t longest = 0;  // tokens of the longest sequence

  int64_t sequences() const { return cu_seqlens.rows() - 1; }
};

// Where a dropout acts. An element survives with probability 1-probability and is scaled by
// 1/(1-probability). Its mask is a function of (the sequence's key).fold(layer).fold(site) at
// counter (position in the sequence, element), so it never depends on rank, chunk or threads:
// 16-bit lane `element % 8` of philox(key, position, element / 8) is compared with
// round(probability * 65536).
struct DropoutSite {
  double probability = 0;  // 0: none, and the keys are not read
  uint64_t layer = 0;
  uint64_t site = 0;
  // Attention only: heads in front of this rank's, where they are spread over ranks.
  uint64_t first_head = 0;
};

}  // namespace amur
