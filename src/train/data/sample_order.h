// The order of an epoch, and the share of a batch that a rank takes: both in O(1) memory a sample
// of the batch, the same on every rank without communication.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "src/core/random.h"

namespace amur {

class Dataset;

// Without weights a keyed permutation of all samples; with weights draws with replacement, first of
// a source by weight, then of one of its samples.
class SampleOrder {
 public:
  SampleOrder(const Dataset& data, uint64_t seed, int64_t epoch);
  int64_t epoch() const { return epoch_; }
  // Global sample id at a position of the epoch, 0 <= position < data.samples().
  int64_t operator()(int64_t position) const;

 private:
  struct Share {
    double up_to;  // cumulative weight, the last is 1
    int64_t first, count;
  };
  int64_t epoch_;
  RandomKey draw_key_;
  std::optional<KeyedPermutation> permutation_;
  std::vector<Share> shares_;
};

// Positions in the batch, ascending, that a rank takes of samples with these sizes: largest first,
// each to the rank that has least so far.
std::vector<int32_t> share_of_rank(std::span<const int64_t> bytes, int rank, int ranks);

}  // namespace amur
