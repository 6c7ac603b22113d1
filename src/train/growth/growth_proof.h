// What a widened model computes, against the one that it came from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "src/train/data/tokenizer.h"
#include "src/train/embedding_model.h"

namespace amur {

class Runtime;

struct ProbePairs {
  std::vector<std::string> queries, documents;
};

// Pairs from a file, one a line, query and document separated by a tab; a line without a tab is
// both. Empty path: 64 pairs of made-up words, the same on every call.
ProbePairs probe_pairs(const std::string& path);

struct GrowthProof {
  int64_t texts = 0;
  bool embeddings_compared = false;                // they have the same size
  double max_difference = 0, mean_difference = 0;  // |z~ - z| over all elements, unit vectors
  double max_cosine_difference = 0;                // over all pairs of texts
  double loss_before = 0, loss_after = 0;          // of the probe pairs as one batch
  double bound = 0;                                // of the differences of elements and of cosines
  bool pass() const;
};

// Bound: 1e-12 in fp64, 5e-6 otherwise. Texts are cut at the old length. Collective over dp; every
// rank gets the same answer. Time grows with the square of the number of texts.
GrowthProof prove_growth(EmbeddingModel& before, EmbeddingModel& after, const Tokenizer& tokenizer,
                         const Config& old_config, const ProbePairs& probe, Communicator& dp,
                         Runtime& runtime);

}  // namespace amur
