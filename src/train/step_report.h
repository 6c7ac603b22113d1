// What a step tells: a line of metrics.jsonl, a row of the history, the progress line.
#pragma once

#include <string>

#include "src/train/checkpoint/checkpoint.h"
#include "src/train/two_pass.h"

namespace amur {

struct StepReport {
  int64_t step = 0;  // steps done, this one included
  DataPosition position;
  double loss = 0;  // mean over the batches of the step; NaN where it was skipped
  double scale = 0, learning_rate = 0;
  double gradient_norm = 0, momentum_change = 0;
  double seconds = 0;
  double cpu_seconds = 0;         // of all threads of this rank
  double checkpoint_seconds = 0;  // that the training stood still for checkpoints before this step
  StepTimes times;
  // Of this rank, the same on all of a tp group but for the work; summed by StepReporter.
  int64_t pairs = 0, tokens = 0, chunks = 0, recomputed = 0, truncated = 0;
  double forward_flops = 0;  // of this rank alone
  int batches = 0;
  std::string growth;    // JSON: how the model grew right before this step; "": it did not
  size_t gpu_bytes = 0;  // the most that this rank ever had of its GPU; 0 on the CPU
  SideTraffic sync;      // of the sum over ranks: seconds that it was under way, bytes of this rank

  void add(const BatchGradient& gradient, const LocalBatch& batch);
};

class StepReporter {
 public:
  // Appends to `history`, which must outlive it.
  StepReporter(const Config& config, int64_t first_step, int64_t total_steps,
               MetricsHistory& history);

  // Collective over the grid: counts are summed, memory and seconds are the largest.
  void add(const StepReport& report, ProcessGrid& grid);
  // The step as one JSON object.
  const std::string& last_line() const { return line_; }
  // Rates and shares of time over this start, into the log.
  void summary() const;

 private:
  const Config& config_;
  int64_t first_step_, total_steps_, log_every_;
  MetricsHistory& history_;
  std::string line_;
  double seconds_ = 0, pairs_ = 0, tokens_ = 0, flops_ = 0, smooth_loss_ = 0;
  StepTimes sum_;
  int64_t steps_ = 0;
};

}  // namespace amur
