// Semantic textual similarity: does the cosine of two texts follow people's judgement?
#pragma once

#include <span>
#include <string>
#include <vector>

#include "src/train/evaluation/bootstrap.h"
#include "src/train/text_embedder.h"

namespace amur {

struct StsOptions {
  std::string
      file;       // text <TAB> text <TAB> score, also .gz; a first line without a number: heading
  int tower = 0;  // 0 query, 1 document: for both sides
  std::string prefix;
};

// "spearman" (equal values share the mean of their ranks) and "pearson" of two lists, as scipy's
// spearmanr and pearsonr; not a number where a list is constant. The same on all ranks, at least
// two values. Collective.
std::vector<Score> correlations(std::span<const double> a, std::span<const double> b,
                                Communicator& world);

// Correlations of cosine and score, as sentence-transformers' EmbeddingSimilarityEvaluator.
// Collective; UsageError and IoError on every rank.
TaskScores evaluate_sts(const StsOptions& options, TextEmbedder& embedder, Communicator& world);

}  // namespace amur
