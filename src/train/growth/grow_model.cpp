#include "src/train/growth/grow_model.h"

#include <map>

namespace amur {

void widen_outline(const Growth& growth, EmbeddingModel& from, EmbeddingModel& to) {
  for (Parameter& p : to.parameters()) {
    const GrowthRule rule = growth.rule(p, from.parameters());
    growth.inherit(rule, from.parameters().find(rule.source), p);
  }
  const std::map<std::string, double> old = from.constants();
  for (int which = 0; which < (to.separate_towers() ? 2 : 1); ++which)
    for (const ModelConstant& c : to.tower(which).constants())
      if (const auto it = old.find(growth.old_name(c.name)); it != old.end())
        *c.value = growth.constant(c.kind, it->second);
}

Config grown_config(const Config& config, const Growth& growth) {
  Config grown = config;
  grown.model = growth.to();
  for (ParameterGroup& group : grown.optimizer.groups)
    if (group.layer >= 0) group.layer = growth.place_of_layer(group.layer);
  return grown;
}

}  // namespace amur
