#include "src/train/optimizer/optimizer.h"

#include <algorithm>
#include <array>

#include "src/core/hash.h"
#include "src/train/optimizer/adamw.h"
#include "src/train/optimizer/lion.h"
#include "src/train/optimizer/tiger.h"

namespace amur {
namespace {

constexpr std::array kKinds = {ParamKind::weight, ParamKind::embedding, ParamKind::bias,
                               ParamKind::gain, ParamKind::scalar};

bool matches(const ParameterGroup& group, const Parameter& parameter) {
  return (group.role.empty() || group.role == name_of(parameter.kind)) &&
         (group.layer < 0 || group.layer == parameter.layer);
}

}  // namespace

std::unique_ptr<Optimizer> Optimizer::make(const OptimizerConfig& config, ParameterSet& parameters,
                                           double scalar_learning_rate, Communicator* tp,
                                           uint64_t seed) {
  switch (config.kind) {
    case OptimizerKind::tiger:
      return std::make_unique<Tiger>(config, parameters, scalar_learning_rate, tp, seed);
    case OptimizerKind::adamw:
      return std::make_unique<AdamW>(config, parameters, scalar_learning_rate, tp, seed);
    case OptimizerKind::lion:
      return std::make_unique<Lion>(config, parameters, scalar_learning_rate, tp, seed);
  }
  throw InternalError("unknown optimizer");
}

// A slab is cut along one axis, so that its elements are runs of the whole tensor at one distance.
StochasticRounding Optimizer::rounding_of(const Parameter& p, int64_t step) const {
  StochasticRounding rounding;
  rounding.key = RandomKey(seed_)
                     .fold(static_cast<uint64_t>(RandomPurpose::weight_rounding))
                     .fold(static_cast<uint64_t>(step))
                     .fold(fnv1a(p.name))
                     .value();
  const int axis = p.sharding.axis;
  if (tp_ == nullptr || axis < 0) return rounding;
  const Slab slab = slab_of(p, tp_->rank(), tp_->size());
  const Shape whole = p.global_shape();
  rounding.index = {.first = slab.first[axis] * whole.product(axis + 1, whole.dims()),
                    .run = slab.count.product(axis, whole.dims()),
                    .distance = whole.product(axis, whole.dims())};
  return rounding;
}

void apply_parameter_groups(const OptimizerConfig& config, ParameterSet& parameters) {
  for (const ParameterGroup& group : config.groups) {
    const bool known = group.role.empty() || std::any_of(kKinds.begin(), kKinds.end(), [&](auto k) {
                         return group.role == name_of(k);
                       });
    if (!known)
      throw UsageError(
          "optimizer.groups: unknown role '{}'; use weight, embedding, bias, gain or scalar",
          group.role);
  }
  for (Parameter& p : parameters) {
    const auto group = std::find_if(config.groups.begin(), config.groups.end(),
                                    [&](const ParameterGroup& g) { return matches(g, p); });
    if (group == config.groups.end()) continue;
    p.learning_rate_multiplier *= group->learning_rate;
    p.decay_multiplier *= group->decay;
    p.frozen = p.frozen || group->frozen;
  }
}

}  // namespace amur
