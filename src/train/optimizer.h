// Optimizers: where gradients accumulate during a step, their sum over ranks, and the update.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "src/model/parameter.h"
#include "src/train/config.h"

namespace amur {

// A tensor of optimizer state, for the checkpoint: same shape and slab as its parameter, or one
// value a row of it (`per_row`: [rows] i64).
struct OptimizerSlot {
  std::string slot;            // "momentum", "last_step", "first_moment", ...
  const Parameter* parameter;
  TensorView value;
  bool per_row = false;
};

// A step is: begin_step; any number of backward passes that add to the sinks; finish_step.
class Optimizer {
 public:
  // Allocates the state for all unfrozen parameters.
  static std::unique_ptr<Optimizer> make(const OptimizerConfig& config, ParameterSet& parameters);
  virtual ~Optimizer() = default;
  virtual const char* name() const = 0;  // "tiger": the checkpoint's /optimizer/<name>

  // Names every unfrozen parameter's sink and its scale. `weight` multiplies every gradient (1 for
  // one batch, 1/k for k independent ones). `touched` holds, per embedding parameter in set order,
  // the bitmap [rows] u8 of rows that this rank will touch; they are agreed over dp here. Only dp rank
  // 0 starts from beta * m, the others from 0. Collective over dp.
  virtual void begin_step(int64_t step, double weight, std::span<TensorView> touched,
                          Communicator& dp) = 0;
  // Sums what was accumulated over dp, checks that it is finite (NumericError naming the first
  // tensor, on every rank) and updates the parameters with relative learning rate `alpha`.
  // Collective. Scalars (temperature, bias) have been given their gradient by the caller through
  // their sink on dp rank 0 only.
  virtual void finish_step(int64_t step, double alpha, Communicator& dp) = 0;

  virtual std::vector<OptimizerSlot> slots() = 0;
  // Norm over all parameters of the change of momentum (tiger, lion) or of the gradient (adamw) in
  // the last step.
  virtual double last_gradient_norm() const = 0;
  virtual size_t state_bytes() const = 0;
};

// Relative learning rate of optimizer step `step` (from 0), in 0..1 times optimizer.learning_rate.
double schedule_factor(const OptimizerConfig& config, int64_t step, int64_t total_steps);

// Factor on the cached embedding gradients so that their global norm obeys the clip: 1 for none,
// min(1, gamma/norm), or gamma/(norm + gamma). Exact: parameter gradients are linear in them.
double clip_factor(const OptimizerConfig& config, double norm);

}  // namespace amur
