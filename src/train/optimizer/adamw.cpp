#include "src/train/optimizer/adamw.h"

#include "kernels/optimizer_update.h"

namespace amur {

AdamW::AdamW(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
             Communicator* tp, uint64_t seed)
    : BufferedOptimizer(config, parameters, scalar_learning_rate, tp, seed),
      first_moments_(zeros_like_parameters()),
      second_moments_(zeros_like_parameters()) {}

void AdamW::update_from(std::span<const Tensor> gradients, int64_t step, double alpha) {
  std::vector<ParameterUpdate> all;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    Parameter& p = parameters()[i];
    all.push_back({AdamWStep{.rate = rate_of(p, alpha),
                             .decay = decay_of(p),
                             .beta1 = config().beta1,
                             .beta2 = config().beta2,
                             .epsilon = config().epsilon,
                             .count = step + 1},
                   p.value, first_moments_[i], gradients[i], second_moments_[i],
                   rounding_of(p, step)});
  }
  update_parameters(all);
}

std::vector<OptimizerSlot> AdamW::slots() {
  std::vector<OptimizerSlot> slots;
  for (size_t i = 0; i < first_moments_.size(); ++i) {
    if (!first_moments_[i].defined()) continue;
    slots.push_back({"first_moment", &parameters()[i], first_moments_[i]});
    slots.push_back({"second_moment", &parameters()[i], second_moments_[i]});
  }
  return slots;
}

size_t AdamW::state_bytes() const {
  size_t bytes = gradient_bytes();
  for (const Tensor& t : first_moments_)
    if (t.defined()) bytes += 2 * t.bytes();
  return bytes;
}

}  // namespace amur
