#include "src/model/model_config.h"

#include <algorithm>
#include <cmath>

#include "src/core/error.h"

namespace amur {

int64_t ModelConfig::resolved_ffn() const {
  if (ffn != 0) return ffn;
  if (!is_gated(activation)) return 4 * hidden;
  constexpr int64_t kUnit = 64;
  return (8 * hidden + 3 * kUnit - 1) / (3 * kUnit) * kUnit;
}

std::string ModelConfig::attention_text() const {
  if (local_attention == 0 || global_every == 1 || layers <= 1) return "over the whole text";
  return fmt::format(
      "layers 0, {}, {}, .. over the whole text, the others over {} tokens to either side",
      global_every, 2 * global_every, local_attention / 2);
}

void ModelConfig::require_shares(int64_t tp) const {
  const auto require = [&](const char* what, int64_t count) {
    if (count < tp)
      throw UsageError("parallel.tp: {} ranks cannot share {} of {}; use at most {}", tp, what,
                       count, count);
  };
  if (layers > 0) {
    require("model.heads", heads);
    require("model.ffn", resolved_ffn());
  }
  if (vocab > 0) require("a vocabulary", vocab);
}

double ModelConfig::residual_std() const {
  if (residual_init != 0) return init_std * residual_init;
  return init_std / std::sqrt(2.0 * static_cast<double>(std::max<int64_t>(layers, 1)));
}

}  // namespace amur
