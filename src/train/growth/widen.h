// `amur widen`: a checkpoint of a larger model that computes what the old one does, with its
// optimizer state, and the proof. The rules stand in src/model/growth.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "src/model/growth.h"
#include "src/train/config/growth_schedule.h"
#include "src/train/growth/growth_proof.h"

namespace amur {

class Runtime;

struct WidenOptions {
  std::string input, output;  // checkpoint file or run folder; the file to be written
  std::string probe;          // see probe_pairs
  std::string config_output;  // where the new configuration is written too; empty: nowhere
  std::string vocabulary;     // SentencePiece model whose first pieces are the checkpoint's
  GrowthOptions growth;
  GrowthSchedule schedule;
  bool plan_only = false;
  bool prove = true;
  int64_t proof_ranks = 0;  // that share a model for the proof; 0: as few as memory allows
};

struct TensorPlan {
  std::string name, before, after, rule;  // shapes as text; `before` is empty for new ones
  int64_t elements = 0;
};

struct WidenResult {
  std::vector<TensorPlan> plan;
  std::vector<std::string> warnings;
  int64_t parameters_before = 0, parameters_after = 0;
  double file_bytes = 0;    // of tensors in the new file
  double memory_bytes = 0;  // that the proof takes on each rank: the weights of the larger model
  bool written = false;
  std::optional<GrowthProof> proof;
};

// Collective over all ranks; from file to file (see GrownCheckpoint), but for the proof, for which
// ranks share a model where it would not fit into the memory of a machine as often as there are
// ranks. UsageError where it does not fit once. Nothing stands under the output's name unless the
// proof passes and the file has been read back.
WidenResult widen(const WidenOptions& options, CommBackend backend, Runtime& runtime);

std::string to_text(const WidenResult& result, const WidenOptions& options);
std::string to_json(const WidenResult& result, const WidenOptions& options);

}  // namespace amur
