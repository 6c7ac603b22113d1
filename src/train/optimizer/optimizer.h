// Optimizers: where gradients accumulate during a step, their sum over ranks, and the update.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/optimizer_rules.h"
#include "src/model/parameter.h"
#include "src/train/config/config.h"
#include "src/train/optimizer/gradient_sync.h"

namespace amur {

// A tensor of optimizer state, for the checkpoint: same shape and slab as its parameter, or one
// value a row of it (`per_row`: [rows] i64).
struct OptimizerSlot {
  std::string slot;  // "momentum", "last_step", "first_moment", ...
  const Parameter* parameter;
  TensorView value;
  bool per_row = false;
};

// A step is: begin_step; any number of backward passes that add to the sinks; finish_step.
class Optimizer {
 public:
  // Allocates the state for all unfrozen parameters; for those of EmbeddingModel::outline, slots of
  // one element each, which tell what there would be. `scalar_learning_rate` is the step of the
  // parameters of kind scalar (log-scale, bias) before the schedule: they have a rule of their own,
  // without decay. Tiger and Lion move them by that times clamp(m / 0.01, -1, 1), m the momentum: a
  // sign step far from the optimum, coming to rest near it, since dL/dt is a pure number whatever
  // the model; AdamW by Adam's rule. Clamping the value is the caller's.
  // `tp` are the ranks that share the parameters; null: this one has them whole. `seed` is that of
  // the rounding of bf16 weights.
  static std::unique_ptr<Optimizer> make(
      const OptimizerConfig& config, ParameterSet& parameters,
      double scalar_learning_rate = LossConfig().scale_learning_rate, Communicator* tp = nullptr,
      uint64_t seed = 0);
  virtual ~Optimizer() = default;
  virtual const char* name() const = 0;  // "tiger": the checkpoint's /optimizer/<name>

  // How the sums of a step travel. Before the first step.
  virtual void set_sync(SyncOptions options) { sync_.set_options(std::move(options)); }

  // Names every unfrozen parameter's sink and its scale. `weight` multiplies every gradient (1 for
  // one batch, 1/k for k independent ones). `touched` holds, per parameter of kind embedding
  // (frozen or not) in set order, the bitmap [local rows] u8 of rows that this rank will touch in
  // any batch of the step; they are agreed over dp here, in place. Rows outside must not be added
  // to. Read by Tiger's lazy rows only; may be empty otherwise. Only dp rank 0 starts from beta *
  // m, the others from 0. Collective over dp.
  virtual void begin_step(int64_t step, double weight, std::span<TensorView> touched,
                          Communicator& dp) = 0;
  // During the last backward pass of the step: nothing more will be added to the sinks of this
  // group of SyncOptions::groups on this rank. Its sum may start. Never a must.
  void group_done(size_t group, Communicator& dp) { sync_.group_done(group, dp); }
  // Sums what was accumulated over dp; NumericError naming the first tensor that is not finite and
  // the first rank that holds it, on every rank of the grid. Scalars (temperature, bias) have been
  // given their gradient by the caller through their sink on dp rank 0 only. Collective over the
  // grid.
  void sum_over_ranks(int64_t step, Communicator& dp) { sync_.finish(step, dp); }
  // Updates the parameters with learning rate `alpha` = optimizer.learning_rate * schedule_factor.
  // Parameters, momentum and last_step are bit-identical on all ranks of dp afterwards, and
  // replicated ones on all ranks. Collective over tp.
  virtual void update(int64_t step, double alpha) = 0;
  void finish_step(int64_t step, double alpha, Communicator& dp) {
    sum_over_ranks(step, dp);
    update(step, alpha);
  }

  // Before the state is looked at from outside: brings back what rounded sums hold aside, exactly.
  // Collective over dp.
  virtual void settle(Communicator&) {}
  virtual std::vector<OptimizerSlot> slots() = 0;
  // Norm over all parameters (lazy tables: touched rows) of the gradient of the last step (adamw,
  // lion) or of the momentum after it (tiger, whose gradient never exists apart from the momentum).
  virtual double last_gradient_norm() const = 0;
  virtual size_t state_bytes() const = 0;

 protected:
  Optimizer(ParameterSet& parameters, Communicator* tp, uint64_t seed)
      : sync_(parameters, tp), tp_(tp), seed_(seed) {}
  GradientSync& sync() { return sync_; }
  // How step `step` rounds this parameter where it is kept in bf16.
  StochasticRounding rounding_of(const Parameter& parameter, int64_t step) const;

 private:
  GradientSync sync_;
  Communicator* tp_;
  uint64_t seed_;
};

// Multiplies learning rate and decay of each parameter by those of the first entry of
// `config.groups` that matches its kind and layer, and freezes it if the entry says so. Once, on a
// set that does not carry them yet, before Optimizer::make. UsageError for an unknown role.
void apply_parameter_groups(const OptimizerConfig& config, ParameterSet& parameters);

// Relative learning rate of optimizer step `step` (from 0), in 0..1 times optimizer.learning_rate.
//   piecewise: linear between the points (optimizer step, factor), constant after the last; a point
//              (0, 0) comes before them unless the first is at 0; no points: 1
//              (kexue.fm/archives/9512, where the keys count micro-steps: divide those by the
//              number of batches a step)
//   cosine:    linear from 1/warmup_steps to 1, then by half a cosine to final_fraction at step
//              total_steps - 1, constant after it
double schedule_factor(const OptimizerConfig& config, int64_t step, int64_t total_steps);

// Factor on the cached embedding gradients so that their global norm obeys the clip: 1 for none,
// min(1, gamma/norm), or gamma/(norm + gamma). Exact: parameter gradients are linear in them.
double clip_factor(const OptimizerConfig& config, double norm);

}  // namespace amur
