#include "src/train/optimizer/gradient_sync.h"

namespace amur {

void require_finite_gradients(const ParameterSet& parameters, int64_t step,
                              const std::function<bool(size_t)>& finite, Communicator& dp) {
  size_t first = 0;
  while (first < parameters.size() && finite(first)) ++first;
  const auto ranks = static_cast<int64_t>(dp.size());
  const int64_t worst = dp.min(static_cast<int64_t>(first) * ranks + dp.rank());
  const auto tensor = static_cast<size_t>(worst / ranks);
  if (tensor == parameters.size()) return;
  throw NumericError(
      "step {}: the gradient of {} is not finite on {} rank {}; the parameters are those of the "
      "step "
      "before. Resume from the newest checkpoint, with a lower optimizer.learning_rate or in fp32",
      step, parameters[tensor].name, dp.name(), worst % ranks);
}

}  // namespace amur
