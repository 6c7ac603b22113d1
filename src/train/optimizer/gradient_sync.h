// The sum of what the ranks accumulated in a step, bucket by bucket: each starts as soon as its
// last gradient is there, and goes on beside the rest of the backward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "src/model/parameter.h"

namespace amur {

// How sums travel. The default: all at the end, by the library's all-reduce.
struct SyncOptions {
  Stream stream;  // of Communicator::side_stream; the default one: no side stream
  // Parameters in the order in which a step finishes them, as EmbeddingModel::backward_groups;
  // those that are in none come last.
  std::vector<std::vector<Parameter*>> groups;
  bool rounded = false;  // what travels between machines is bf16; f32 parameters, Tiger only
};

class GradientSync {
 public:
  // `tp` are the ranks that share the parameters; null: this one has them whole.
  GradientSync(ParameterSet& parameters, Communicator* tp);
  void set_options(SyncOptions options);
  const SyncOptions& options() const { return options_; }

  // What an optimizer keeps for the sum of parameters[i]. `rows`: only these rows of the sink have
  // been touched, the same on all ranks (ascending). `residual`: where rounding is on, what it took
  // away goes here; shaped as the sink.
  struct Part {
    std::optional<std::span<const int64_t>> rows;
    TensorView residual;
  };
  using PartOf = std::function<Part(size_t)>;

  // Nothing of the new step is complete. `part_of` must stay valid until `finish` returns.
  void begin(PartOf part_of);
  // All gradients of options().groups[group] are in their sinks on this rank. The ranks may come to
  // it at different times and in different orders: sums start in the order of the groups, the same
  // everywhere.
  void group_done(size_t group, Communicator& dp);
  // The rest, and the wait. Throws NumericError on every rank if some rank accumulated a non-finite
  // value: it names the first tensor in set order and the first rank that has it there. Collective
  // over the whole grid.
  void finish(int64_t step, Communicator& dp);

  // `sums` holds one or more numbers a parameter, [k][parameters], each a sum over the elements
  // that this rank has; they become sums over all elements, a replicated tensor counting once, with
  // the same bits on every rank. Collective over tp: one operation for all.
  void complete_sums(std::vector<double>& sums) const;

 private:
  void start_ready(Communicator& dp);
  void start(const std::vector<size_t>& bucket, Communicator& dp);
  void mark(const std::vector<TensorView>& sums, int64_t first_flag);
  void sum_rows(size_t index, const Part& part, Communicator& dp);

  ParameterSet& parameters_;
  Communicator* tp_;
  SyncOptions options_;
  std::vector<std::vector<size_t>> buckets_;  // places in the set; the last one: those in no group
  PartOf part_of_;
  std::vector<bool> ready_;
  size_t started_ = 0;     // buckets
  // Whether tensor flagged_[k] is finite is written to flags_[k] (0 or 1), on the device, before its
  // sum begins, and read at the end: nothing waits for it in between.
  Tensor flags_;
  std::vector<size_t> flagged_;
  size_t not_finite_ = 0;  // place of the first tensor of which this rank found it
};

}  // namespace amur
