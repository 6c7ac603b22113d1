#include "src/model/growth.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

namespace amur {
namespace {

int64_t chosen(int64_t wanted, int64_t before) {
  return wanted == 0 ? before : wanted;
}

bool has_axis(const Parameter& p, AxisRole role) {
  return std::any_of(p.axes.begin(), p.axes.end(), [&](const Axis& a) { return a.role == role; });
}

// Of a norm: how much of its output is normalised.
bool is_gate(const Parameter& p) {
  return p.kind == ParamKind::gain && p.axes.front().role == AxisRole::fixed;
}

// Adds to the residual stream: an output projection, or a bias of model width (that of a norm may
// start again from 0 as well).
bool writes_to_stream(const Parameter& p) {
  return (p.kind == ParamKind::weight || p.kind == ParamKind::bias) && !p.axes.empty() &&
         p.axes.front().role == AxisRole::model;
}

}  // namespace

Growth::Growth(const ModelConfig& from, const GrowthOptions& options)
    : from_(from), to_(from), options_(options) {
  AMUR_CHECK(from.vocab > 0, "the vocabulary's size is not set");
  resolve();
  check();
}

void Growth::resolve() {
  to_.hidden = chosen(options_.hidden, from_.hidden);
  to_.layers = chosen(options_.layers, from_.layers);
  to_.vocab = chosen(options_.vocab, from_.vocab);
  if (options_.positions != 0) {
    to_.max_length = options_.positions;
    if (from_.positions != 0) to_.positions = options_.positions;
  }
  to_.heads = chosen(options_.heads, from_.heads);
  copied_ = to_.hidden / from_.hidden * from_.hidden;
  if (from_.projection == 0 && to_.hidden > from_.hidden && options_.projection)
    to_.projection = from_.hidden;
  if (from_.layers == 0) return;
  // Sizes that followed from others go on doing so where that gives the wanted one.
  const int64_t head = chosen(options_.head_size, from_.resolved_head_size());
  to_.head_size = 0;
  if (from_.head_size != 0 || to_.heads * head != to_.hidden) to_.head_size = head;
  const int64_t ffn = chosen(options_.ffn, from_.resolved_ffn());
  to_.ffn = 0;
  if (from_.ffn != 0 || to_.resolved_ffn() != ffn) to_.ffn = ffn;
  if (to_.norm_position == NormPosition::post && to_.layers > from_.layers) to_.norm_gate = true;
  const int64_t old_head = from_.resolved_head_size();
  if (to_.position != PositionKind::rotary || from_.rotary_size != 0) return;
  if (options_.head_growth == HeadGrowth::copies && head != old_head)
    to_.rotary_size = old_head;   // as many frequencies as before
  else if (head % old_head != 0)  // old pair j keeps its own: base^(-2j/h) = base'^(-2j/h')
    for (double* base : {&to_.rotary_base, &to_.local_rotary_base})
      if (*base != 0)
        *base = std::pow(*base, static_cast<double>(head) / static_cast<double>(old_head));
}

void Growth::check() const {
  std::string problems;
  const auto report = [&]<class... A>(fmt::format_string<A...> format, A&&... a) {
    problems += "\n  " + fmt::format(format, std::forward<A>(a)...);
  };
  const auto at_least = [&](const char* option, int64_t wanted, int64_t before) {
    if (wanted != 0 && wanted < before)
      report("--{} {}: the model has {} already, and what would be cut off is part of its function",
             option, wanted, before);
  };
  at_least("hidden", options_.hidden, from_.hidden);
  at_least("layers", options_.layers, from_.layers);
  at_least("vocab", options_.vocab, from_.vocab);
  at_least("positions", options_.positions, from_.resolved_positions());
  if (from_.layers == 0) {
    for (const auto& [option, value] :
         {std::pair("heads", options_.heads), std::pair("head-size", options_.head_size),
          std::pair("ffn", options_.ffn), std::pair("layers", options_.layers)})
      if (value != 0)
        report(
            "--{} {}: a static embedding model has no layers, and the norms that come with "
            "them would change its function",
            option, value);
  } else {
    at_least("heads", options_.heads, from_.heads);
    at_least("head-size", options_.head_size, from_.resolved_head_size());
    at_least("ffn", options_.ffn, from_.resolved_ffn());
    const bool wider = to_.hidden > from_.hidden;
    if (wider && to_.norm == NormKind::layer && to_.hidden % from_.hidden != 0 &&
        !options_.old_statistics)
      report(
          "--hidden {}: with LayerNorm an exact width is a multiple of {} (here {} or {}). The "
          "norm behind the embeddings{} writes into the residual stream, where coordinates that "
          "are no copies shift the mean that the next norm takes away by an amount that depends "
          "on the text. --old-statistics takes mean and variance from the copies alone and "
          "allows any width; so does RMSNorm",
          to_.hidden, from_.hidden, std::max(copied_, from_.hidden), copied_ + from_.hidden,
          to_.norm_position == NormPosition::post ? " and that of each block" : "");
    if (wider && to_.position == PositionKind::sinusoidal)
      report(
          "--hidden {}: sinusoidal positions are a formula of the width, and that of {} gives "
          "other positions than copies of those of {}",
          to_.hidden, to_.hidden, from_.hidden);
    if (to_.position == PositionKind::rotary && options_.head_size % 2 != 0)
      report("--head-size {}: rotary positions turn pairs of numbers", options_.head_size);
  }
  if (!problems.empty())
    throw UsageError("the model cannot be widened like this without changing what it computes:{}",
                     problems);
}

bool Growth::changes_nothing() const {
  return to_.hidden == from_.hidden && to_.heads == from_.heads && to_.ffn == from_.ffn &&
         to_.resolved_head_size() == from_.resolved_head_size() && to_.layers == from_.layers &&
         to_.vocab == from_.vocab && to_.max_length == from_.max_length &&
         to_.resolved_ffn() == from_.resolved_ffn();
}

std::vector<std::string> Growth::warnings() const {
  std::vector<std::string> all;
  const auto slow = [&](const char* what, int64_t size, int64_t unit) {
    if (size % unit != 0)
      all.push_back(
          fmt::format("{} {} is no multiple of {}: matrix kernels may be slow on it, and "
                      "those of GPUs may refuse it",
                      what, size, unit));
  };
  slow("hidden", to_.hidden, 64);
  if (to_.layers == 0) return all;
  slow("ffn", to_.resolved_ffn(), 64);
  slow("head size", to_.resolved_head_size(), 8);
  return all;
}

int64_t Growth::place_of_layer(int64_t old_layer) const {
  const int64_t period = from_.layer_period();
  const int64_t turns = (from_.layers + period - 1) / period;
  const int64_t more = (to_.layers - from_.layers) / period;
  return old_layer / period * (turns + more) / turns * period + old_layer % period;
}

Growth::LayerSource Growth::source_of_layer(int64_t layer) const {
  const int64_t period = from_.layer_period();
  int64_t last = from_.layers - 1;  // of the same place in a turn, where there is one
  for (int64_t old = 0; old < from_.layers; ++old) {
    const int64_t place = place_of_layer(old);
    if (place % period != layer % period) continue;
    if (place >= layer) return {old, place > layer};
    last = old;
  }
  return {last, true};
}

std::string Growth::old_name(const std::string& name) const {
  constexpr std::string_view kLayers = ".layers.";
  const size_t at = name.find(kLayers);
  if (at == std::string::npos) return name;
  const size_t first = at + kLayers.size(), end = name.find('.', first);
  const int64_t layer = std::stoll(name.substr(first, end - first));
  return fmt::format("{}{}{}", name.substr(0, first), source_of_layer(layer).layer,
                     name.substr(end));
}

GrowthRule Growth::rule(const Parameter& to, ParameterSet& old) const {
  GrowthRule rule;
  rule.new_layer = to.layer >= 0 && source_of_layer(to.layer).is_new;
  if (const Parameter* source = old.find(old_name(to.name))) rule.source = source->name;
  if (rule.new_layer && (writes_to_stream(to) || is_gate(to))) {
    rule.silent = true;
    rule.source.clear();
    rule.text = is_gate(to) ? "new layer: 0, so that its norm does nothing"
                            : "new layer: 0, so that it adds nothing";
    return rule;
  }
  if (rule.source.empty() && is_gate(to)) {
    rule.open_gate = true;
    rule.text = "fixed: 1, the norm as it was";
    return rule;
  }
  if (has_axis(to, AxisRole::projection) && from_.projection == 0) {
    rule.average = true;
    rule.text = "fixed: mean over the copies";
    return rule;
  }
  if (rule.source.empty()) {
    rule.text = "as initialised";
    return rule;
  }
  const bool weight = to.kind == ParamKind::weight;
  const auto times = [](int64_t now, int64_t before) {
    return now % before == 0 ? fmt::format("{}", now / before)
                             : fmt::format("{} to {}", now / before, now / before + 1);
  };
  const char* split = options_.split == GrowthSplit::even    ? "even"
                      : options_.split == GrowthSplit::noise ? "noise"
                                                             : "uneven";
  std::vector<std::string> parts;
  for (size_t i = 0; i < to.axes.size(); ++i) {
    const AxisRole role = to.axes[i].role;
    const int64_t now = to.axes[i].size, before = old.find(rule.source)->axes[i].size;
    if (now == before) continue;
    const bool input =
        weight && (i + 1 == to.axes.size() || (role == AxisRole::heads && i + 2 == to.axes.size()));
    switch (role) {
      case AxisRole::model:
      case AxisRole::heads:
      case AxisRole::ffn: {
        const int64_t copies = role == AxisRole::model ? copied_ : now;
        parts.push_back(input ? fmt::format("{}: split over {} ({})", name_of(role),
                                            times(copies, before), split)
                              : fmt::format("{}: {} copies", name_of(role), times(copies, before)));
        if (copies < now)
          parts.back() += fmt::format(" and {} {}", now - copies, input ? "random" : "zeros");
        if (input) rule.fan_in *= static_cast<double>(copies) / static_cast<double>(before);
        break;
      }
      case AxisRole::head:
        if (options_.head_growth == HeadGrowth::extend) {
          parts.push_back(fmt::format("head: {} new", now - before));
          break;
        }
        parts.push_back(input ? fmt::format("head: split over {} ({})", times(now, before), split)
                              : fmt::format("head: {} copies", times(now, before)));
        if (input) rule.fan_in *= static_cast<double>(now) / static_cast<double>(before);
        break;
      default:
        parts.push_back(fmt::format("{}: {} new rows", name_of(role), now - before));
    }
  }
  rule.text = parts.empty() ? "as it is" : fmt::format("{}", fmt::join(parts, "; "));
  if (rule.new_layer) rule.text = fmt::format("new layer, from {}: {}", rule.source, rule.text);
  return rule;
}

double Growth::constant(ConstantKind kind, double old_value) const {
  switch (kind) {
    case ConstantKind::norm_eps:
      return old_value * eta_squared();
    case ConstantKind::norm_statistics_width: {
      // Of copies, or of the coordinates that an earlier growth has left them to.
      const bool whole = old_value == static_cast<double>(from_.hidden);
      if (!whole) return old_value;
      return static_cast<double>(options_.old_statistics ? copied_ : to_.hidden);
    }
    case ConstantKind::attention_scale:
      return old_value * std::sqrt(static_cast<double>(from_.resolved_head_size()) /
                                   static_cast<double>(to_.resolved_head_size()));
  }
  throw InternalError("unknown constant");
}

}  // namespace amur
