// A training step without its data: model, optimizer and the two passes, as the trainer puts them
// together, timed phase by phase.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/train/optimizer/optimizer.h"
#include "src/train/stopwatch.h"
#include "src/train/two_pass.h"

namespace amur {

inline constexpr int64_t kKeepAll = int64_t{1} << 40;  // train.activation_budget

struct BenchStep {
  StepTimes times;  // the device has finished a phase where the next one begins
  double seconds = 0;
  double forward_flops = 0;  // of one forward, this rank
  double tokens = 0, loss = 0;
  int64_t chunks = 0, recomputed = 0;
};

class BenchTrainer {
 public:
  BenchTrainer(Config config, Precision precision, ProcessGrid& grid, Runtime& runtime,
               Device device = Device::cpu());

  const Config& config() const { return config_; }
  EmbeddingModel& model() { return model_; }
  DType dtype() const { return model_.dtype(); }
  BenchStep step(const LocalBatch& batch, int64_t activation_budget = kKeepAll);

  int64_t parameters() { return model_.parameters().global_elements(); }
  // Weights, and what the optimizer has beside them: the training state of this rank.
  size_t weight_bytes();
  size_t optimizer_bytes() const { return optimizer_->state_bytes(); }
  const char* optimizer_name() const { return optimizer_->name(); }
  DType sinks();  // of weight gradients
  // Bytes that all chunks of a batch keep.
  int64_t activation_bytes(const LocalBatch& batch);

 private:
  void touch(const LocalBatch& batch);

  Config config_;
  ProcessGrid& grid_;
  Stream stream_;
  EmbeddingModel model_;
  std::unique_ptr<Optimizer> optimizer_;
  TwoPass two_pass_;
  std::vector<Tensor> touched_;  // of the token table, of the position table
  int64_t step_ = 0;
  double pass1_end_ = 0, loss_end_ = 0;  // of the step that runs, seconds since its begin
  Stopwatch step_watch_;
};

// Pairs of texts of random tokens, all different. `mean` tokens a text, markers included; with a
// `longest` > mean lengths are log-normal (sigma 0.7) around that mean and cut there.
LocalBatch random_batch(int64_t pairs, int64_t mean, int64_t longest, int64_t vocabulary,
                        uint64_t seed);

}  // namespace amur
