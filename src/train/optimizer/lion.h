// Lion (Chen et al., arXiv 2302.06675), for comparison: the step is the sign of beta1 m + (1-beta1)
// g, the momentum decays with beta2. Embedding tables are dense: every row at every step.
#pragma once

#include <vector>

#include "src/train/optimizer/buffered_optimizer.h"

namespace amur {

class Lion : public BufferedOptimizer {
 public:
  Lion(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
       Communicator* tp, uint64_t seed);
  const char* name() const override { return "lion"; }
  std::vector<OptimizerSlot> slots() override;
  size_t state_bytes() const override;

 private:
  void update_from(std::span<const Tensor> gradients, int64_t step, double alpha) override;

  std::vector<Tensor> momenta_;
};

}  // namespace amur
