#include "src/train/growth/grow_model.h"

#include <algorithm>
#include <map>

namespace amur {
namespace {

constexpr const char* kSecondMoment = "second_moment";

}  // namespace

void widen_model(const Growth& growth, EmbeddingModel& from, EmbeddingModel& to) {
  for (Parameter& p : to.parameters()) {
    const GrowthRule rule = growth.rule(p, from.parameters());
    growth.widen(rule, from.parameters().find(rule.source), p);
  }
  const std::map<std::string, double> old = from.constants();
  for (int which = 0; which < (to.separate_towers() ? 2 : 1); ++which)
    for (const ModelConstant& c : to.tower(which).constants())
      if (const auto it = old.find(growth.old_name(c.name)); it != old.end())
        *c.value = growth.constant(c.kind, it->second);
}

void widen_state(const Growth& growth, EmbeddingModel& from, std::span<const OptimizerSlot> old,
                 std::span<const OptimizerSlot> grown) {
  constexpr int64_t kNever = -1;  // step of a row that no step has touched
  for (const OptimizerSlot& slot : grown) {
    const GrowthRule rule = growth.rule(*slot.parameter, from.parameters());
    const Parameter* source = from.parameters().find(rule.source);
    const auto it = std::find_if(old.begin(), old.end(), [&](const OptimizerSlot& s) {
      return s.slot == slot.slot && s.parameter == source;
    });
    if (slot.per_row) {
      AMUR_CHECK(it != old.end(), "{}: no {} to start from", slot.parameter->name, slot.slot);
      growth.widen_rows(it->value, kNever, slot.value);
    } else {
      growth.widen_moment(rule, source, it == old.end() ? TensorView() : it->value,
                          slot.slot == kSecondMoment ? 2 : 1, *slot.parameter, slot.value);
    }
  }
}

Config grown_config(const Config& config, const Growth& growth) {
  Config grown = config;
  grown.model = growth.to();
  for (ParameterGroup& group : grown.optimizer.groups)
    if (group.layer >= 0) group.layer = growth.place_of_layer(group.layer);
  return grown;
}

}  // namespace amur
