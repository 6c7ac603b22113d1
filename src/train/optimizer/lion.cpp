#include "src/train/optimizer/lion.h"

#include "kernels/optimizer_update.h"
#include "src/train/optimizer/rates.h"

namespace amur {

Lion::Lion(const OptimizerConfig& config, ParameterSet& parameters, double scalar_learning_rate,
           Communicator* tp)
    : BufferedOptimizer(config, parameters, scalar_learning_rate, tp),
      momenta_(zeros_like_parameters()) {}

void Lion::update_parameter(size_t i, ConstTensorView gradient, int64_t, double alpha) {
  Parameter& p = parameters()[i];
  const bool scalar = p.kind == ParamKind::scalar;
  const LionStep step{.rate = scalar ? 0 : rate_of(p, alpha),
                      .decay = decay_of(p),
                      .beta1 = config().beta1,
                      .beta2 = config().beta2};
  lion_update(gradient, step, momenta_[i], p.value);
  if (scalar) bounded_update(momenta_[i], rate_of(p, alpha), kScalarThreshold, p.value);
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
