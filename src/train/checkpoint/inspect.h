// What `amur inspect` shows of a checkpoint: tensors with statistics, state, configuration,
// lineage. One process; needs neither a model nor MPI.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/train/checkpoint/checkpoint.h"

namespace amur {

struct InspectOptions {
  std::string path;        // a checkpoint file
  bool statistics = true;  // read the tensors' elements
  bool verify = false;     // recompute every check sum
  bool json = false;
};

// Of one tensor. Moments are over the finite elements; NaN where there is none.
struct TensorStatistics {
  double mean, deviation, rms, min, max;
  int64_t not_finite = 0;
};

struct TensorReport {
  std::string path, kind, dtype;  // kind is empty for optimizer state
  std::vector<int64_t> shape;
  std::vector<std::string> axes;
  double learning_rate_multiplier = 1, decay_multiplier = 1, rms_floor = 0;
  bool frozen = false;
  uint64_t checksum = 0;  // as stored
  bool damaged = false;   // with `verify`: the elements have another check sum, or cannot be read
  TensorStatistics statistics{};
};

struct CheckpointReport {
  std::string path;
  int64_t file_bytes = 0;
  CheckpointInfo info;
  std::vector<TensorReport> tensors;
  int64_t parameters = 0;  // elements under /model
  bool damaged() const;
};

// IoError where it is no complete checkpoint. A damaged tensor is no error but part of the report.
CheckpointReport inspect_checkpoint(const InspectOptions& options);
std::string to_text(const CheckpointReport& report, const InspectOptions& options);
std::string to_json(const CheckpointReport& report, const InspectOptions& options);

// The text or JSON for standard output, and the exit code: kExitIo where something is damaged.
struct InspectResult {
  std::string output;
  int exit_code = kExitOk;
};
InspectResult inspect(const InspectOptions& options);

}  // namespace amur
