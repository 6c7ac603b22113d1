// `amur compare`: what two checkpoints compute for the same texts.
#pragma once

#include <optional>
#include <string>

#include "comm/process_grid.h"
#include "src/train/growth/gaussian.h"
#include "src/train/growth/growth_proof.h"

namespace amur {

class Runtime;

struct CompareOptions {
  std::string first, second;  // checkpoint files or run folders
  std::string probe;          // see probe_pairs; empty: 10 made-up pairs a coordinate
  double ridge = 1e-3;        // of the mean variance, see gaussian_of
};

struct CompareResult {
  GrowthProof function;
  // Queries against documents, as each model embeds them.
  GaussianDistances of_first, of_second;
  // Largest relative difference between the two.
  double largest_change = 0;
  // All texts as the first model embeds them against all as the second does; where the embeddings
  // have one size.
  std::optional<GaussianDistances> between;
};

// Each model with its own vocabulary and length. Collective.
CompareResult compare(const CompareOptions& options, CommBackend backend, Runtime& runtime);

std::string to_text(const CompareResult& result);
std::string to_json(const CompareResult& result);

}  // namespace amur
