// What a widened model computes, against the one that it came from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "src/train/data/tokenizer.h"
#include "src/train/embedding_model.h"
#include "src/train/loss/reference_loss.h"

namespace amur {

class Runtime;

struct ProbePairs {
  std::vector<std::string> queries, documents;
};

// Pairs from a file, one a line, query and document separated by a tab; a line without a tab is
// both. Empty path: so many pairs of made-up words, the same on every call.
ProbePairs probe_pairs(const std::string& path, int64_t made_up = 64);

// Unit vectors of the probe pairs in doubles, and their loss as one batch.
struct ProbeEmbeddings {
  ReferenceBatch batch;
  double loss = 0;
};
// Texts are cut at config.model.max_length. Collective over dp; every rank gets all.
ProbeEmbeddings embed_probe(EmbeddingModel& model, const Tokenizer& tokenizer, const Config& config,
                            const ProbePairs& probe, Communicator& dp, Runtime& runtime);
// Queries, then documents: [texts, e].
std::vector<double> all_rows(const ProbeEmbeddings& embeddings);

struct GrowthProof {
  int64_t texts = 0;
  bool embeddings_compared = false;                // they have the same size
  double max_difference = 0, mean_difference = 0;  // |z~ - z| over all elements, unit vectors
  double max_cosine_difference = 0;                // over all pairs of texts
  double loss_before = 0, loss_after = 0;          // of the probe pairs as one batch
  double bound = 0;                                // of the differences of elements and of cosines
  bool pass() const;
};

// Bound: 1e-12 in fp64, 5e-6 otherwise. Time grows with the square of the number of texts.
GrowthProof compare_embeddings(const ProbeEmbeddings& before, const ProbeEmbeddings& after,
                               DType parameters);
std::string to_text(const GrowthProof& proof);  // some indented lines
std::string to_json(const GrowthProof& proof);  // one line

}  // namespace amur
