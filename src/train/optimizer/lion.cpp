#include "src/train/optimizer/lion.h"

#include "kernels/optimizer_update.h"
#include "src/train/optimizer/rates.h"

namespace amur {

Lion::Lion(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
           Communicator* tp, uint64_t seed)
    : BufferedOptimizer(config, parameters, scalar_learning_rate, tp, seed),
      momenta_(zeros_like_parameters()) {}

void Lion::update_from(std::span<const Tensor> gradients, int64_t step, double alpha) {
  std::vector<ParameterUpdate> all, scalars;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    Parameter& p = parameters()[i];
    const bool scalar = p.kind == ParamKind::scalar;
    const LionStep lion{.rate = scalar ? 0 : rate_of(p, alpha),
                        .decay = decay_of(p),
                        .beta1 = config().beta1,
                        .beta2 = config().beta2};
    all.push_back({lion, p.value, momenta_[i], gradients[i], {}, rounding_of(p, step)});
    if (scalar)
      scalars.push_back({BoundedStep{rate_of(p, alpha), kScalarThreshold}, p.value, momenta_[i]});
  }
  update_parameters(all);
  update_parameters(scalars);
}

std::vector<OptimizerSlot> Lion::slots() {
  std::vector<OptimizerSlot> slots;
  for (size_t i = 0; i < momenta_.size(); ++i)
    if (momenta_[i].defined()) slots.push_back({"momentum", &parameters()[i], momenta_[i]});
  return slots;
}

size_t Lion::state_bytes() const {
  size_t bytes = gradient_bytes();
  for (const Tensor& t : momenta_)
    if (t.defined()) bytes += t.bytes();
  return bytes;
}

}  // namespace amur
