// Base of the optimizers that need the gradient apart from their state: a buffer a parameter,
// cleared at begin_step and summed over dp.
#pragma once

#include <vector>

#include "src/train/optimizer/optimizer.h"

namespace amur {

class BufferedOptimizer : public Optimizer {
 public:
  void begin_step(int64_t step, double weight, std::span<TensorView> touched,
                  Communicator& dp) override;
  void set_sync(SyncOptions options) override;
  void update(int64_t step, double alpha) override;
  double last_gradient_norm() const override { return norm_; }

 protected:
  BufferedOptimizer(const OptimizerConfig& config, ParameterSet& parameters,
                    double scalar_learning_rate, Communicator* tp, uint64_t seed);

  // Updates the parameters from the summed gradients, one a parameter, undefined where it is
  // frozen.
  virtual void update_from(std::span<const Tensor> gradients, int64_t step, double alpha) = 0;

  const OptimizerConfig& config() const { return config_; }
  ParameterSet& parameters() { return parameters_; }
  size_t gradient_bytes() const;
  // Zeros shaped as each unfrozen parameter, never in bf16; undefined for the frozen ones.
  std::vector<Tensor> zeros_like_parameters() const;
  // Learning rate and decay of a parameter. Only weights and embeddings decay; embeddings have a
  // rate of their own where the configuration gives one, scalars always.
  double rate_of(const Parameter& parameter, double alpha) const;
  double decay_of(const Parameter& parameter) const;

 private:
  OptimizerConfig config_;
  ParameterSet& parameters_;
  double scalar_learning_rate_;
  std::vector<Tensor> gradients_;  // one a parameter
  double norm_ = 0;
};

}  // namespace amur
