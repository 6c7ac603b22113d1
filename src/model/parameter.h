// A model parameter: what it is, how it is shaped and sharded, and where its gradient goes.
//
// Optimizer rule, shard position, checkpoint key and widening rule all derive from this struct,
// never from a pattern on the name.
#pragma once

#include <array>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "src/core/random.h"
#include "src/core/tensor.h"

namespace amur {

enum class ParamKind : uint8_t { weight, embedding, bias, gain, scalar };
enum class AxisRole : uint8_t { model, heads, head, ffn, vocab, position, projection, fixed };

const char* name_of(ParamKind kind);
const char* name_of(AxisRole role);

// Logical tensors are up to 4-D so that every axis has one role: a fused query/key/value weight is
// [3 fixed, heads, head, model], a gated up-projection [2 fixed, ffn, model].
struct Axis {
  int64_t size;
  AxisRole role;
};

struct Sharding {
  int axis = -1;  // -1: every tp rank holds the whole tensor
};

struct Initializer {
  enum class Kind : uint8_t { zeros, constant, normal, truncated_normal };
  Kind kind = Kind::zeros;
  double value = 0;  // the constant, or the standard deviation
};

struct Parameter {
  std::string name;  // "encoder.layers.0.attention.qkv.weight": also the key in the checkpoint
  ParamKind kind = ParamKind::weight;
  int layer = -1;          // index of its encoder layer; -1: outside of the layers
  std::vector<Axis> axes;  // global sizes
  Sharding sharding;
  Initializer init;

  // Stored with the checkpoint; 1, 1, 0, false for an ordinary parameter.
  double learning_rate_multiplier = 1;
  double decay_multiplier = 1;
  double rms_floor = 0;  // Tiger: step size of a declared zero-initialised tensor
  bool frozen = false;
  // True gradient is 0 by construction (a key bias, positions past the longest text): excluded from
  // relative errors of gradients.
  bool zero_gradient = false;

  Tensor value;  // local shard, in the dtype of ParameterSet::allocate
  // The gradient sink of this step: backward adds sink_scale * dW. Undefined while frozen or when
  // no gradient is wanted (evaluation).
  TensorView sink;
  double sink_scale = 0;

  Shape global_shape() const;
  int64_t global_elements() const { return global_shape().elements(); }
  // Most of the numbers of a model are in these; they alone are ever kept in bf16.
  bool is_matrix() const { return kind == ParamKind::weight || kind == ParamKind::embedding; }
  // Product of the axes that a gradient step sums over for one output: fan-in of a weight.
  int64_t fan_in() const;
};

// Where the shard of one tp rank lies in the global tensor: `first` and `count` per axis.
struct Slab {
  Shape first;
  Shape count;
};
Slab slab_of(const Parameter& parameter, int tp_rank, int tp_size);

// Cuts a tensor into boxes of at most `elements` (or one index of the last axis that may be cut),
// each contiguous in memory, in row-major order. Axes from `axes` on stay whole; along axis a boxes
// also end at the multiples of cuts[a], where there are cuts.
std::vector<Slab> boxes_of(const Shape& shape, int axes, int64_t elements,
                           std::span<const int64_t> cuts = {});
inline std::vector<Slab> boxes_of(const Shape& shape, int64_t elements) {
  return boxes_of(shape, shape.dims(), elements);
}

// f(element of the slab, element of the whole tensor), row-major, in the order of the slab.
template <class F>
void for_each_element(const Slab& slab, const Shape& global, const F& f) {
  std::array<int64_t, Shape::kMaxDims> at{};  // position inside the slab
  for (int64_t i = 0; i < slab.count.elements(); ++i) {
    int64_t index = 0;
    for (int d = 0; d < global.dims(); ++d)
      index = index * global[d] + slab.first[d] + at[static_cast<size_t>(d)];
    f(i, index);
    for (int d = global.dims() - 1; d >= 0; --d) {
      if (++at[static_cast<size_t>(d)] < slab.count[d]) break;
      at[static_cast<size_t>(d)] = 0;
    }
  }
}

// Initial values of a part of a parameter, [slab.count]: functions of seed, name and global index.
void fill_initial(const Parameter& parameter, const Slab& slab, uint64_t seed, TensorView values);

// The parameters of a model, in a fixed order. References stay valid.
class ParameterSet {
 public:
  Parameter& add(Parameter parameter);  // names are unique
  size_t size() const { return items_.size(); }
  Parameter& operator[](size_t i) { return items_[i]; }
  const Parameter& operator[](size_t i) const { return items_[i]; }
  Parameter* find(std::string_view name);
  auto begin() { return items_.begin(); }
  auto end() { return items_.end(); }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }

  int64_t global_elements() const;
  // Allocates the local shards, weights and embeddings in `matrices` and the rest in `dtype`, and
  // fills them (see fill_initial).
  void allocate(DType dtype, Device device, int tp_rank, int tp_size) {
    allocate(dtype, dtype, device, tp_rank, tp_size);
  }
  void allocate(DType dtype, DType matrices, Device device, int tp_rank, int tp_size);
  void initialise(uint64_t seed, int tp_rank, int tp_size);

 private:
  std::deque<Parameter> items_;
};

}  // namespace amur
