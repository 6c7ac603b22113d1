// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bias correction and decoupled decay, for
// comparison. Embedding tables are dense: every row at every step.
#pragma once

#include <vector>

#include "src/train/optimizer/buffered_optimizer.h"

namespace amur {

class AdamW : public BufferedOptimizer {
 public:
  AdamW(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
        Communicator* tp, uint64_t seed);
  const char* name() const override { return "adamw"; }
  std::vector<OptimizerSlot> slots() override;
  size_t state_bytes() const override;

 private:
  void update_from(std::span<const Tensor> gradients, int64_t step, double alpha) override;

  std::vector<Tensor> first_moments_, second_moments_;
};

}  // namespace amur
