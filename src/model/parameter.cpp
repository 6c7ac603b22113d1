#include "src/model/parameter.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "src/core/hash.h"

namespace amur {
namespace {

// Standard deviation of a standard normal cut at +-2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
constexpr double kCutAtTwoStd = 0.87962566103423978;

Shape shape_of_dims(int dims) {
  static const std::array<Shape, Shape::kMaxDims + 1> kOnes = {Shape{}, Shape{1}, Shape{1, 1},
                                                               Shape{1, 1, 1}, Shape{1, 1, 1, 1}};
  return kOnes[static_cast<size_t>(dims)];
}

// Standard normal cut at +-2, by rejection: attempt k draws from its own stream, so that the value
// stays a function of the element's index. 4.6% of the draws are rejected.
double truncated_normal(const RandomKey& key, uint64_t index) {
  double z = key.normal(index);
  for (uint64_t attempt = 1; std::abs(z) > 2; ++attempt) z = key.fold(attempt).normal(index);
  return z / kCutAtTwoStd;
}

double initial_value(const Initializer& init, const RandomKey& key, uint64_t index) {
  switch (init.kind) {
    case Initializer::Kind::zeros:
      return 0;
    case Initializer::Kind::constant:
      return init.value;
    case Initializer::Kind::normal:
      return init.value * key.normal(index);
    case Initializer::Kind::truncated_normal:
      return init.value * truncated_normal(key, index);
  }
  throw InternalError("unknown initialiser");
}

// Slices of the first axis side by side: there may be hundreds of millions of values.
template <class T>
void fill(T* out, const Parameter& parameter, const Slab& slab, const RandomKey& key) {
  const Shape shape = parameter.global_shape();
  const bool sliced = slab.count.dims() > 0;
  const int64_t slices = sliced ? slab.count[0] : 1;
  const int64_t of_slice = slab.count.product(1, slab.count.dims());
  const int64_t grain = 4096 / std::max<int64_t>(of_slice, 1) + 1;
  cpu::parallel_for(slices, grain, [&](int64_t first, int64_t last) {
    const Slab part =
        sliced ? Slab{slab.first.with(0, slab.first[0] + first), slab.count.with(0, last - first)}
               : slab;
    T* const begin = out + first * of_slice;
    for_each_element(part, shape, [&](int64_t local, int64_t index) {
      begin[local] = static_cast<T>(static_cast<AccumulateType<T>>(
          initial_value(parameter.init, key, static_cast<uint64_t>(index))));
    });
  });
}

}  // namespace

const char* name_of(ParamKind kind) {
  switch (kind) {
    case ParamKind::weight:
      return "weight";
    case ParamKind::embedding:
      return "embedding";
    case ParamKind::bias:
      return "bias";
    case ParamKind::gain:
      return "gain";
    case ParamKind::scalar:
      return "scalar";
  }
  return "?";
}

const char* name_of(AxisRole role) {
  switch (role) {
    case AxisRole::model:
      return "model";
    case AxisRole::heads:
      return "heads";
    case AxisRole::head:
      return "head";
    case AxisRole::ffn:
      return "ffn";
    case AxisRole::vocab:
      return "vocab";
    case AxisRole::position:
      return "position";
    case AxisRole::projection:
      return "projection";
    case AxisRole::fixed:
      return "fixed";
  }
  return "?";
}

Shape Parameter::global_shape() const {
  AMUR_CHECK(axes.size() <= Shape::kMaxDims, "{} has {} axes", name, axes.size());
  Shape shape = shape_of_dims(static_cast<int>(axes.size()));
  for (size_t i = 0; i < axes.size(); ++i) shape = shape.with(static_cast<int>(i), axes[i].size);
  return shape;
}

int64_t Parameter::fan_in() const {
  if (kind != ParamKind::weight || axes.empty()) return 1;
  // A weight is [outputs..., inputs...]; its inputs are one axis, or the pair heads, head.
  int64_t inputs = axes.back().size;
  if (axes.back().role == AxisRole::head && axes.size() >= 2 &&
      axes[axes.size() - 2].role == AxisRole::heads)
    inputs *= axes[axes.size() - 2].size;
  return inputs;
}

Slab slab_of(const Parameter& parameter, int tp_rank, int tp_size) {
  AMUR_CHECK(tp_rank >= 0 && tp_rank < tp_size, "tp rank {} of {}", tp_rank, tp_size);
  Slab slab;
  slab.count = parameter.global_shape();
  slab.first = shape_of_dims(slab.count.dims());
  for (int d = 0; d < slab.first.dims(); ++d) slab.first = slab.first.with(d, 0);
  const int axis = parameter.sharding.axis;
  if (axis < 0) return slab;
  AMUR_CHECK(axis < slab.count.dims(), "{}: sharded on axis {} of {}", parameter.name, axis,
             slab.count.text());
  const int64_t size = slab.count[axis];
  const int64_t first = size * tp_rank / tp_size;
  slab.first = slab.first.with(axis, first);
  slab.count = slab.count.with(axis, size * (tp_rank + 1) / tp_size - first);
  return slab;
}

std::vector<Slab> boxes_of(const Shape& shape, int axes, int64_t elements,
                           std::span<const int64_t> cuts) {
  Slab box{shape_of_dims(shape.dims()), shape};
  for (int d = 0; d < shape.dims(); ++d) box.first = box.first.with(d, 0);
  if (axes == 0 || shape.elements() <= elements) return {box};
  int axis = 0;
  while (axis + 1 < axes && shape.product(axis + 1, shape.dims()) > elements) ++axis;
  const int64_t step = std::max<int64_t>(elements / shape.product(axis + 1, shape.dims()), 1);
  for (int d = 0; d < axis; ++d) box.count = box.count.with(d, 1);
  std::vector<Slab> boxes;
  const int64_t leading = shape.product(0, axis);
  for (int64_t i = 0; i < leading; ++i) {
    for (int64_t first = 0; first < shape[axis]; first += box.count[axis]) {
      int64_t count = std::min(step, shape[axis] - first);
      if (!cuts.empty()) {
        const int64_t every = cuts[static_cast<size_t>(axis)];
        count = std::min(count, every - first % every);
      }
      box.first = box.first.with(axis, first);
      box.count = box.count.with(axis, count);
      boxes.push_back(box);
    }
    for (int d = axis - 1; d >= 0; --d) {
      const bool carry = box.first[d] + 1 == shape[d];
      box.first = box.first.with(d, carry ? 0 : box.first[d] + 1);
      if (!carry) break;
    }
  }
  return boxes;
}

void fill_initial(const Parameter& parameter, const Slab& slab, uint64_t seed, TensorView values) {
  const RandomKey key = RandomKey(seed)
                            .fold(static_cast<uint64_t>(RandomPurpose::weights))
                            .fold(fnv1a(parameter.name));
  dispatch_float(values.dtype(), "initialise",
                 [&]<class T>() { fill(values.as<T>(), parameter, slab, key); });
}

Parameter& ParameterSet::add(Parameter parameter) {
  AMUR_CHECK(!parameter.name.empty(), "a parameter without a name");
  AMUR_CHECK(!find(parameter.name), "two parameters are called {}", parameter.name);
  return items_.emplace_back(std::move(parameter));
}

Parameter* ParameterSet::find(std::string_view name) {
  for (Parameter& p : items_)
    if (p.name == name) return &p;
  return nullptr;
}

int64_t ParameterSet::global_elements() const {
  int64_t n = 0;
  for (const Parameter& p : items_) n += p.global_elements();
  return n;
}

void ParameterSet::allocate(DType dtype, DType matrices, Device device, int tp_rank, int tp_size) {
  for (Parameter& p : items_)
    p.value = Tensor(slab_of(p, tp_rank, tp_size).count, p.is_matrix() ? matrices : dtype, device);
}

void ParameterSet::initialise(uint64_t seed, int tp_rank, int tp_size) {
  for (Parameter& p : items_) {
    const Slab slab = slab_of(p, tp_rank, tp_size);
    AMUR_CHECK(p.value.defined() && p.value.shape() == slab.count, "{}: allocated as {}, shard {}",
               p.name, p.value.shape().text(), slab.count.text());
    const bool on_host = p.value.device() == Device::cpu();
    Tensor staging;
    if (!on_host) staging = Tensor(slab.count, p.value.dtype());
    const TensorView host = on_host ? p.value.view() : staging.view();
    fill_initial(p, slab, seed, host);
    if (!on_host) {
      const Stream stream(p.value.device());
      copy(p.value, staging, stream);
      stream.synchronize();  // the staging buffer goes away
    }
  }
}

}  // namespace amur
