// `amur train`: the loop from the first step to the last, with checkpoints, evaluation and resume.
#pragma once

#include <optional>
#include <string>

#include "comm/process_grid.h"
#include "src/train/config/config.h"
#include "src/train/evaluation/pairs.h"

namespace amur {

class Runtime;

struct TrainOptions {
  std::string run_dir;
  std::string resume =
      "auto";    // auto: the run folder's newest checkpoint if there is one; never; path
  int gpus = 0;  // of each machine, in turn to its ranks; 0: all compute on the CPU
};

struct TrainResult {
  int64_t steps = 0;         // done since the beginning of the run
  int64_t first_step = 0;    // where this start began
  bool interrupted = false;  // a signal asked to stop; a checkpoint was written: exit code 75
  std::string checkpoint;    // the newest
  double loss = 0;           // of the last step
  double seconds = 0;        // of this start
  std::optional<Evaluation> evaluation;  // the last one
};

// Collective over all ranks. Throws as the design of errors says: UsageError before anything is
// written, IoError, NumericError.
TrainResult train(Config config, const TrainOptions& options, CommBackend backend,
                  Runtime& runtime);

std::string to_json(const TrainResult& result);

}  // namespace amur
