// The tensors of src/model/growth.h.
#include <algorithm>
#include <array>
#include <cmath>

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

double root_mean_square_of(ConstTensorView view) {
  return dispatch_f32_f64(view.dtype(), "rms", [&]<class T>() {
    double sum = 0;
    for (int64_t i = 0; i < view.elements(); ++i) {
      const auto x = static_cast<double>(view.as<T>()[i]);
      sum += x * x;
    }
    return std::sqrt(sum / static_cast<double>(std::max<int64_t>(view.elements(), 1)));
  });
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
    build_outputs();
    build_inputs();
  }

  const std::vector<Output>& outputs() const { return outputs_; }
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

  // Old in-head index of query and key under rotary positions, where j turns with j + h/2: pair j
  // becomes pair r j where the head grows r times, and the formula of the new size gives it its old
  // angle; otherwise it stays pair j, and the base has been changed.
  int64_t old_pair_member(int64_t index, int64_t size, int64_t old_size) const {
    const int64_t pair = index % (size / 2), half = index / (size / 2);
    const int64_t ratio = size % old_size == 0 ? size / old_size : 1;
    if (pair % ratio != 0 || pair / ratio >= old_size / 2) return -1;
    return pair / ratio + half * (old_size / 2);
  }

  void place(size_t axis, int64_t index, HeadPart part, Output& out, int64_t& source) const {
    const int64_t size = now(axis), old_size = before(axis);
    int64_t old = index;
    switch (to_.axes[axis].role) {
      case AxisRole::model:
        old = repeated(index, growth_.copied_width(), old_size);
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
        old = index % old_size;
        out.share /= static_cast<double>(copies_of(old, size, old_size));
        break;
      case AxisRole::head: {
        const bool turned =
            part != HeadPart::value && growth_.to().position == PositionKind::rotary;
        old = turned ? old_pair_member(index, size, old_size) : index < old_size ? index : -1;
        if (old < 0)
          out.fill =
              part != HeadPart::query && to_.kind == ParamKind::weight ? Fill::random : Fill::zero;
        else if (part != HeadPart::value)
          out.scale *= std::pow(static_cast<double>(size) / static_cast<double>(old_size), 0.25);
        break;
      }
      case AxisRole::vocab:
      case AxisRole::position:
        if (index >= old_size) {
          old = -1;
          out.fill = Fill::random;
        }
        break;
      case AxisRole::projection:
      case AxisRole::fixed:
        break;
    }
    if (old < 0 || source < 0)
      source = -1;
    else
      source = source * old_size + old;
  }

  void build_outputs() {
    int64_t count = 1;
    for (size_t a = 0; a < output_axes_; ++a) count *= now(a);
    outputs_.resize(static_cast<size_t>(count));
    std::array<int64_t, Shape::kMaxDims> at{};
    for (Output& out : outputs_) {
      int64_t source = 0;
      const HeadPart part = output_axes_ == 0 ? HeadPart::value : head_part(to_, at[0]);
      for (size_t a = 0; a < output_axes_; ++a) place(a, at[a], part, out, source);
      out.source = source;
      for (size_t a = output_axes_; a-- > 0;) {
        if (++at[a] < now(a)) break;
        at[a] = 0;
      }
    }
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
          if (k < before(head)) {
            in.source = old * before(head) + k;
            in.part = 1 / static_cast<double>(copies_of(old, now(heads), before(heads)));
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
  std::vector<Output> outputs_;
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
void widen_values(const Growth& growth, const TensorGrowth& tensor, const Parameter& from,
                  Parameter& to) {
  const auto& inputs = tensor.inputs();
  const auto copies = tensor.copies();
  const GrowthSplit split = growth.options().split;
  std::vector<double> parts;
  for (const Input& in : inputs) parts.push_back(in.part);
  if (split == GrowthSplit::uneven && to.kind == ParamKind::weight)
    make_uneven(growth, to, copies, parts);
  const bool noisy = split == GrowthSplit::noise && to.kind == ParamKind::weight;
  const double rms = root_mean_square_of(from.value);
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

  const T* old = from.value.as<T>();
  T* out = to.value.as<T>();
  std::vector<double> row(inputs.size());
  uint64_t first = 0;
  for (const Output& o : tensor.outputs()) {
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
void average(const Growth& growth, Parameter& to) {
  // [old width, new width]
  const int64_t rows = to.axes[0].size, columns = to.axes[1].size;
  const double part = static_cast<double>(rows) / static_cast<double>(growth.copied_width());
  T* out = to.value.as<T>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      *out++ = static_cast<T>(c < growth.copied_width() && c % rows == r ? part : 0);
}

}  // namespace

void Growth::widen(const GrowthRule& rule, const Parameter* from, Parameter& to) const {
  AMUR_CHECK(to.value.shape() == to.global_shape(), "{}: growth takes whole tensors", to.name);
  if (rule.average) {
    dispatch_f32_f64(to.value.dtype(), "widen", [&]<class T>() { average<T>(*this, to); });
    to.frozen = true;
    return;
  }
  if (rule.silent) {
    fill_zero(to.value);
    // What Tiger takes for the size of a tensor of zeros (docs/growth.md).
    if (to.kind == ParamKind::weight)
      to.rms_floor = 0.1 / std::sqrt(static_cast<double>(to.fan_in()));
    return;
  }
  if (from == nullptr) return;
  AMUR_CHECK(from->value.dtype() == to.value.dtype(), "{}: {} from {}", to.name,
             name_of(to.value.dtype()), name_of(from->value.dtype()));
  const TensorGrowth tensor(*this, *from, to);
  dispatch_f32_f64(to.value.dtype(), "widen",
                   [&]<class T>() { widen_values<T>(*this, tensor, *from, to); });
  to.learning_rate_multiplier = from->learning_rate_multiplier;
  to.decay_multiplier = from->decay_multiplier * rule.fan_in;
  to.rms_floor = from->rms_floor / rule.fan_in;
  to.frozen = from->frozen;
}

void Growth::widen_moment(const GrowthRule& rule, const Parameter* from, ConstTensorView old_state,
                          int order, const Parameter& to, TensorView state) const {
  fill_zero(state);
  if (from == nullptr || rule.new_layer || !old_state.defined()) return;
  const TensorGrowth tensor(*this, *from, to);
  dispatch_f32_f64(state.dtype(), "widen", [&]<class T>() {
    const T* old = old_state.as<T>();
    T* out = state.as<T>();
    for (const Output& o : tensor.outputs()) {
      const double factor = std::pow(o.share / o.scale, order);
      for (const Input& in : tensor.inputs()) {
        if (o.source >= 0 && in.source >= 0)
          *out = static_cast<T>(
              factor * static_cast<double>(old[o.source * tensor.old_inputs() + in.source]));
        ++out;
      }
    }
  });
}

void Growth::widen_rows(ConstTensorView old_rows, int64_t fresh, TensorView rows) const {
  std::fill_n(rows.as<int64_t>(), rows.elements(), fresh);
  std::copy_n(old_rows.as<int64_t>(), old_rows.elements(), rows.as<int64_t>());
}

}  // namespace amur
