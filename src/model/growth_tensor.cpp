// The tensors of src/model/growth.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "src/core/hash.h"
#include "src/model/growth.h"

namespace amur {
namespace {

enum class Fill : uint8_t { zero, one, random };

// One output of the grown tensor.
struct Output {
  int64_t source = 0;  // old output, or -1: `fill`
  double scale = 1;    // of the value
  double share = 1;    // of the old output's gradient
  Fill fill = Fill::zero;
};

struct Input {
  int64_t source = 0;  // old input, or -1: `fill`
  double part = 1;     // of the old input's weight
  Fill fill = Fill::random;
};

enum class NoiseUse : uint64_t { split = 1, fill, uneven };

int64_t copies_of(int64_t source, int64_t now, int64_t before) {
  return now / before + (source < now % before ? 1 : 0);
}

// Query, key or value: which of them an output of an attention's input projection is.
enum class HeadPart : uint8_t { query, key, value };

// From the leading axis: [3, heads, head] is query, key and value; [2, heads, head] query and
// value; [heads, head] by itself key.
HeadPart head_part(const Parameter& p, int64_t leading) {
  if (p.axes.front().role != AxisRole::fixed) return HeadPart::key;
  if (p.axes.front().size == 2) return leading == 0 ? HeadPart::query : HeadPart::value;
  return static_cast<HeadPart>(leading);
}

constexpr int64_t kStatisticsBox = int64_t{1} << 20;  // elements

// Places inside a head: the old one of each new one, or -1, and how many copies an old one has.
struct HeadMap {
  std::vector<int64_t> source, copies;
};

// `turned`: query and key under rotary positions, where j turns with j + size/2, by the angle that
// belongs to pair j. A pair goes where it keeps its angle:
//   extended: pair j to pair r j where the head grows r times and all frequencies are those of the
//             formula; else it stays pair j, by another base or because frequencies repeat
//   copies:   to pairs whole periods away
HeadMap head_map(const ModelConfig& from, const ModelConfig& to, HeadGrowth growth, bool turned) {
  const int64_t size = to.resolved_head_size(), old_size = from.resolved_head_size();
  const int64_t members = turned ? 2 : 1;  // of a pair
  const int64_t count = size / members, old_count = old_size / members;
  const int64_t period = turned ? std::max(to.rotary_size / 2, int64_t{1}) : 1;
  const int64_t repeated = old_count / period * period;
  const int64_t ratio = turned && to.rotary_size == 0 && size % old_size == 0 ? size / old_size : 1;
  HeadMap map;
  map.copies.assign(static_cast<size_t>(old_size), 0);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = i % count, member = i / count;
    int64_t old = at % ratio == 0 && at / ratio < old_count ? at / ratio : -1;
    if (growth == HeadGrowth::copies && size != old_size) old = at < old_count ? at : at % repeated;
    if (old >= 0) old += member * old_count;
    map.source.push_back(old);
    if (old >= 0) ++map.copies[static_cast<size_t>(old)];
  }
  return map;
}

}  // namespace

// The outputs and inputs of one grown parameter.
class TensorGrowth {
 public:
  TensorGrowth(const Growth& growth, const Parameter& from, const Parameter& to)
      : growth_(growth), from_(from), to_(to) {
    AMUR_CHECK(from.axes.size() == to.axes.size(), "{} has {} axes, {} has {}", from.name,
               from.axes.size(), to.name, to.axes.size());
    const size_t dims = to.axes.size();
    output_axes_ = dims;
    if (to.kind == ParamKind::weight) {
      output_axes_ = dims - 1;
      if (to.axes.back().role == AxisRole::head) --output_axes_;
    }
    const auto map = [&](bool turned) {
      return head_map(growth.from(), growth.to(), growth.options().head_growth, turned);
    };
    if (growth.to().layers > 0) plain_ = map(false);
    if (growth.to().layers > 0 && growth.to().position == PositionKind::rotary) turned_ = map(true);
    build_inputs();
  }

  // Of a part of the parameter: sources are places in the old part.
  std::vector<Output> outputs_of(const GrowthBlock& block) const {
    int64_t count = 1;
    std::array<int64_t, Shape::kMaxDims> at{};
    const auto axis_first = [&](size_t a) { return block.to.first[static_cast<int>(a)]; };
    const auto axis_count = [&](size_t a) { return block.to.count[static_cast<int>(a)]; };
    for (size_t a = 0; a < output_axes_; ++a) {
      count *= axis_count(a);
      at[a] = axis_first(a);
    }
    std::vector<Output> outputs(static_cast<size_t>(count));
    for (Output& out : outputs) {
      const HeadPart part = part_of(at[0]);
      for (size_t a = 0; a < output_axes_; ++a) place(a, at[a], part, block.from, out);
      for (size_t a = output_axes_; a-- > 0;) {
        if (++at[a] < axis_first(a) + axis_count(a)) break;
        at[a] = axis_first(a);
      }
    }
    return outputs;
  }
  // The old part that a part of the new one comes from.
  Slab source_of(const Slab& part) const {
    const Shape old = from_.global_shape();
    Slab source = boxes_of(old, old.elements()).front();
    for (size_t a = 0; a < output_axes_; ++a) {
      const auto axis = static_cast<int>(a);
      if (part.count[axis] == now(a)) continue;  // from the whole of the old axis
      int64_t low = before(a), high = 0;
      for (int64_t i = part.first[axis]; i < part.first[axis] + part.count[axis]; ++i) {
        const int64_t index = old_index(a, i, part_of(part.first[0]));
        if (index < 0) continue;
        low = std::min(low, index);
        high = std::max(high, index + 1);
      }
      source.first = source.first.with(axis, std::min(low, high));
      source.count = source.count.with(axis, std::max<int64_t>(high - low, 0));
    }
    return source;
  }
  size_t output_axes() const { return output_axes_; }
  const std::vector<Input>& inputs() const { return inputs_; }
  int64_t old_inputs() const { return old_inputs_; }
  // New places of each old input.
  std::vector<std::vector<int64_t>> copies() const {
    std::vector<std::vector<int64_t>> all(static_cast<size_t>(old_inputs_));
    for (size_t i = 0; i < inputs_.size(); ++i)
      if (inputs_[i].source >= 0)
        all[static_cast<size_t>(inputs_[i].source)].push_back(static_cast<int64_t>(i));
    return all;
  }

 private:
  int64_t now(size_t axis) const { return to_.axes[axis].size; }
  int64_t before(size_t axis) const { return from_.axes[axis].size; }

  // Old index of `index` on an axis where old ones are repeated, -1 behind `copied`.
  static int64_t repeated(int64_t index, int64_t copied, int64_t before) {
    return index < copied ? index % before : -1;
  }

  HeadPart part_of(int64_t leading) const {
    return output_axes_ == 0 ? HeadPart::value : head_part(to_, leading);
  }
  const HeadMap& head_map_of(HeadPart part) const {
    const bool turned = part != HeadPart::value && growth_.to().position == PositionKind::rotary;
    return turned ? turned_ : plain_;
  }

  // Old index on an output axis, or -1.
  int64_t old_index(size_t axis, int64_t index, HeadPart part) const {
    const int64_t old_size = before(axis);
    switch (to_.axes[axis].role) {
      case AxisRole::model:
        return repeated(index, growth_.copied_width(), old_size);
      case AxisRole::heads:
      case AxisRole::ffn:
        return index % old_size;
      case AxisRole::head:
        return head_map_of(part).source[static_cast<size_t>(index)];
      case AxisRole::vocab:
      case AxisRole::position:
        return index < old_size ? index : -1;
      case AxisRole::projection:
      case AxisRole::fixed:
        break;
    }
    return index;
  }

  void place(size_t axis, int64_t index, HeadPart part, const Slab& from, Output& out) const {
    const int64_t size = now(axis), old_size = before(axis), old = old_index(axis, index, part);
    switch (to_.axes[axis].role) {
      case AxisRole::model:
        if (old < 0) {
          out.fill = to_.kind == ParamKind::gain && growth_.to().norm == NormKind::rms ? Fill::one
                                                                                       : Fill::zero;
        } else {
          out.share /= static_cast<double>(growth_.copied_width() / old_size);
          if (to_.kind == ParamKind::gain) out.scale *= std::sqrt(growth_.eta_squared());
        }
        break;
      case AxisRole::heads:
      case AxisRole::ffn:
        out.share /= static_cast<double>(copies_of(old, size, old_size));
        break;
      case AxisRole::head: {
        if (old < 0) {
          out.fill =
              part != HeadPart::query && to_.kind == ParamKind::weight ? Fill::random : Fill::zero;
          break;
        }
        const auto copies = static_cast<double>(head_map_of(part).copies[static_cast<size_t>(old)]);
        out.share /= copies;
        if (part != HeadPart::value)
          out.scale *= std::pow(static_cast<double>(size) / static_cast<double>(old_size), 0.25) /
                       std::sqrt(copies);
        break;
      }
      case AxisRole::vocab:
      case AxisRole::position:
        if (old < 0) out.fill = Fill::random;
        break;
      case AxisRole::projection:
      case AxisRole::fixed:
        break;
    }
    if (old < 0 || out.source < 0)
      out.source = -1;
    else
      out.source = out.source * from.count[static_cast<int>(axis)] + old -
                   from.first[static_cast<int>(axis)];
  }

  void build_inputs() {
    const size_t dims = to_.axes.size();
    if (output_axes_ == dims) {
      inputs_.resize(1);
      return;
    }
    if (output_axes_ + 2 == dims) {  // heads, head
      const size_t heads = dims - 2, head = dims - 1;
      old_inputs_ = before(heads) * before(head);
      for (int64_t n = 0; n < now(heads); ++n)
        for (int64_t k = 0; k < now(head); ++k) {
          const int64_t old = n % before(heads);
          Input in;
          if (const int64_t old_k = plain_.source[static_cast<size_t>(k)]; old_k >= 0) {
            in.source = old * before(head) + old_k;
            in.part = 1 / static_cast<double>(copies_of(old, now(heads), before(heads)) *
                                              plain_.copies[static_cast<size_t>(old_k)]);
          } else {
            in.source = -1;
            in.fill = Fill::zero;  // values that nobody has asked for yet
          }
          inputs_.push_back(in);
        }
    } else {
      const size_t axis = dims - 1;
      old_inputs_ = before(axis);
      const int64_t copied =
          to_.axes[axis].role == AxisRole::model ? growth_.copied_width() : now(axis);
      for (int64_t i = 0; i < now(axis); ++i) {
        Input in;
        in.source = repeated(i, copied, old_inputs_);
        if (in.source >= 0)
          in.part = 1 / static_cast<double>(copies_of(in.source, copied, old_inputs_));
        inputs_.push_back(in);
      }
    }
  }

  const Growth& growth_;
  const Parameter& from_;
  const Parameter& to_;
  size_t output_axes_;
  int64_t old_inputs_ = 1;
  HeadMap plain_, turned_;
  std::vector<Input> inputs_;
};

namespace {

// Beside the streams of initial values, which fold the hash of a name in this place.
RandomKey stream_of(const Growth& growth, const Parameter& to, NoiseUse use) {
  return RandomKey(growth.options().seed)
      .fold(static_cast<uint64_t>(RandomPurpose::weights))
      .fold(fnv1a("growth"))
      .fold(fnv1a(to.name))
      .fold(static_cast<uint64_t>(use));
}

// The uneven split: shares proportional to numbers in [0.2, 1).
void make_uneven(const Growth& growth, const Parameter& to,
                 const std::vector<std::vector<int64_t>>& copies, std::vector<double>& parts) {
  const RandomKey key = stream_of(growth, to, NoiseUse::uneven);
  for (const auto& places : copies) {
    double sum = 0;
    for (int64_t i : places) {
      parts[static_cast<size_t>(i)] = 0.2 + 0.8 * key.uniform(static_cast<uint64_t>(i));
      sum += parts[static_cast<size_t>(i)];
    }
    for (int64_t i : places) parts[static_cast<size_t>(i)] /= sum;
  }
}

// Adds noise to one row that sums to 0 over the copies of each old input.
void add_noise(const RandomKey& key, uint64_t first, double deviation,
               const std::vector<std::vector<int64_t>>& copies, std::vector<double>& row) {
  std::vector<double> noise;
  for (const auto& places : copies) {
    if (places.size() < 2) continue;
    noise.clear();
    double sum = 0;
    for (int64_t i : places) {
      noise.push_back(deviation / static_cast<double>(places.size()) *
                      key.normal(first + static_cast<uint64_t>(i)));
      sum += noise.back();
    }
    const double mean = sum / static_cast<double>(places.size());
    for (size_t k = 0; k < places.size(); ++k)
      row[static_cast<size_t>(places[k])] += noise[k] - mean;
  }
}

template <class T>
void widen_values(const Growth& growth, const TensorGrowth& tensor, double rms,
                  const GrowthBlock& block, ConstTensorView old_values, const Parameter& to,
                  TensorView values) {
  const auto& inputs = tensor.inputs();
  const auto copies = tensor.copies();
  const GrowthSplit split = growth.options().split;
  std::vector<double> parts;
  for (const Input& in : inputs) parts.push_back(in.part);
  if (split == GrowthSplit::uneven && to.kind == ParamKind::weight)
    make_uneven(growth, to, copies, parts);
  const bool noisy = split == GrowthSplit::noise && to.kind == ParamKind::weight;
  const double noise = rms * std::pow(10.0, -growth.options().noise_db / 20);
  double fresh = to.init.value;  // deviation of random numbers
  if (to.kind == ParamKind::weight)
    fresh = rms * static_cast<double>(tensor.old_inputs()) / static_cast<double>(inputs.size());
  const RandomKey fill_key = stream_of(growth, to, NoiseUse::fill);
  const RandomKey noise_key = stream_of(growth, to, NoiseUse::split);
  const auto filled = [&](Fill fill, uint64_t index) {
    if (fill == Fill::random) return fresh * fill_key.normal(index);
    return fill == Fill::one ? 1.0 : 0.0;
  };

  const T* old = old_values.as<T>();
  T* out = values.as<T>();
  std::vector<double> row(inputs.size());
  uint64_t first = 0;  // of the row, in the whole tensor
  const Shape shape = to.global_shape();
  for (int d = 0; d < shape.dims(); ++d)
    first = first * static_cast<uint64_t>(shape[d]) + static_cast<uint64_t>(block.to.first[d]);
  for (const Output& o : tensor.outputs_of(block)) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Input& in = inputs[i];
      if (o.source < 0)
        row[i] = filled(o.fill, first + i);
      else if (in.source < 0)
        row[i] = filled(in.fill, first + i);
      else
        row[i] = o.scale * static_cast<double>(old[o.source * tensor.old_inputs() + in.source]) *
                 parts[i];
    }
    if (noisy && o.source >= 0) add_noise(noise_key, first, noise, copies, row);
    for (double x : row) *out++ = static_cast<T>(x);
    first += inputs.size();
  }
}

template <class T>
void average(const Growth& growth, const Slab& part, const Parameter& to, TensorView values) {
  const int64_t rows = to.axes[0].size, columns = to.axes[1].size;  // old width, new width
  const double share = static_cast<double>(rows) / static_cast<double>(growth.copied_width());
  T* out = values.as<T>();
  for_each_element(part, to.global_shape(), [&](int64_t local, int64_t index) {
    const int64_t r = index / columns, c = index % columns;
    out[local] = static_cast<T>(c < growth.copied_width() && c % rows == r ? share : 0);
  });
}

}  // namespace

std::vector<Slab> statistics_boxes(const Shape& shape) {
  return boxes_of(shape, kStatisticsBox);
}

double sum_of_squares_of(ConstTensorView box) {
  return dispatch_f32_f64(box.dtype(), "rms", [&]<class T>() {
    double sum = 0;
    for (int64_t i = 0; i < box.elements(); ++i) {
      const auto x = static_cast<double>(box.as<T>()[i]);
      sum += x * x;
    }
    return sum;
  });
}

double root_mean_square_of(std::span<const double> sums, int64_t elements) {
  return std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0) /
                   static_cast<double>(std::max<int64_t>(elements, 1)));
}

void Growth::inherit(const GrowthRule& rule, const Parameter* from, Parameter& to) const {
  if (rule.average || rule.open_gate) {
    to.frozen = true;
  } else if (rule.silent) {
    // What Tiger takes for the size of a tensor of zeros (docs/growth.md).
    if (to.kind == ParamKind::weight)
      to.rms_floor = 0.1 / std::sqrt(static_cast<double>(to.fan_in()));
  } else if (from != nullptr) {
    to.learning_rate_multiplier = from->learning_rate_multiplier;
    to.decay_multiplier = from->decay_multiplier * rule.fan_in;
    to.rms_floor = from->rms_floor / rule.fan_in;
    to.frozen = from->frozen;
  }
}

std::vector<GrowthBlock> Growth::blocks(const Parameter* from, const Parameter& to,
                                        int64_t elements) const {
  const Shape shape = to.global_shape();
  std::vector<GrowthBlock> all;
  if (from == nullptr) {
    for (const Slab& part : boxes_of(shape, elements)) all.push_back({part, {Shape{0}, Shape{0}}});
    return all;
  }
  const TensorGrowth tensor(*this, *from, to);
  std::vector<int64_t> cuts;  // where copies begin again
  for (const Axis& axis : from->axes) cuts.push_back(axis.size);
  for (const Slab& part : boxes_of(shape, static_cast<int>(tensor.output_axes()), elements, cuts))
    all.push_back({part, tensor.source_of(part)});
  return all;
}

bool Growth::widen_block(const GrowthRule& rule, const Parameter* from, double rms,
                         const GrowthBlock& block, ConstTensorView old, const Parameter& to,
                         TensorView values) const {
  AMUR_CHECK(values.shape() == block.to.count, "{}: {} for a block of {}", to.name,
             values.shape().text(), block.to.count.text());
  if (rule.average) {
    dispatch_f32_f64(values.dtype(), "widen",
                     [&]<class T>() { average<T>(*this, block.to, to, values); });
    return true;
  }
  if (rule.silent) {
    fill_zero(values);
    return true;
  }
  if (rule.open_gate) {
    dispatch_f32_f64(values.dtype(), "widen", [&]<class T>() { *values.as<T>() = 1; });
    return true;
  }
  if (from == nullptr) return false;
  AMUR_CHECK(old.shape() == block.from.count && old.dtype() == values.dtype(),
             "{}: {} {} from {} {}", to.name, name_of(values.dtype()), block.from.count.text(),
             name_of(old.dtype()), old.shape().text());
  const TensorGrowth tensor(*this, *from, to);
  dispatch_f32_f64(values.dtype(), "widen",
                   [&]<class T>() { widen_values<T>(*this, tensor, rms, block, old, to, values); });
  return true;
}

void Growth::widen_moment_block(const GrowthRule& rule, const Parameter* from,
                                const GrowthBlock& block, ConstTensorView old, int order,
                                const Parameter& to, TensorView state) const {
  fill_zero(state);
  if (from == nullptr || rule.new_layer || !old.defined()) return;
  const TensorGrowth tensor(*this, *from, to);
  dispatch_f32_f64(state.dtype(), "widen", [&]<class T>() {
    const T* values = old.as<T>();
    T* out = state.as<T>();
    for (const Output& o : tensor.outputs_of(block)) {
      const double factor = std::pow(o.share / o.scale, order);
      for (const Input& in : tensor.inputs()) {
        if (o.source >= 0 && in.source >= 0)
          *out = static_cast<T>(
              factor * static_cast<double>(values[o.source * tensor.old_inputs() + in.source]));
        ++out;
      }
    }
  });
}

}  // namespace amur
