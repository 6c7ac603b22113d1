#include "src/model/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "src/model/step_copies.h"

namespace amur {

namespace {

Parameter& add_qkv_weight(const ModelConfig& config, const std::string& name,
                          ParameterSet& parameters) {
  Parameter p;
  p.name = name + ".qkv.weight";
  p.kind = ParamKind::weight;
  p.axes = {{3, AxisRole::fixed},
            {config.heads, AxisRole::heads},
            {config.resolved_head_size(), AxisRole::head},
            {config.hidden, AxisRole::model}};
  p.sharding.axis = 1;
  p.init = {Initializer::Kind::truncated_normal, config.init_std};
  return parameters.add(std::move(p));
}

Parameter* add_qkv_bias(const ModelConfig& config, const std::string& name,
                        ParameterSet& parameters) {
  if (!config.bias) return nullptr;
  Parameter p;
  p.name = name + ".qkv.bias";
  p.kind = ParamKind::bias;
  p.axes = {{2, AxisRole::fixed},
            {config.heads, AxisRole::heads},
            {config.resolved_head_size(), AxisRole::head}};
  p.sharding.axis = 1;
  return &parameters.add(std::move(p));
}

Parameter* add_key_bias(const ModelConfig& config, const std::string& name,
                        ParameterSet& parameters) {
  if (!config.key_bias) return nullptr;
  Parameter p;
  p.name = name + ".key.bias";
  p.kind = ParamKind::bias;
  p.axes = {{config.heads, AxisRole::heads}, {config.resolved_head_size(), AxisRole::head}};
  p.sharding.axis = 0;
  // It adds the same number to all scores of a query, which the softmax does not see; unless keys
  // are rotated, because then the number depends on the distance.
  p.zero_gradient = config.position != PositionKind::rotary;
  return &parameters.add(std::move(p));
}

Linear add_output(const ModelConfig& config, const std::string& name, ParameterSet& parameters) {
  Parameter p;
  p.name = name + ".output.weight";
  p.kind = ParamKind::weight;
  p.axes = {{config.hidden, AxisRole::model},
            {config.heads, AxisRole::heads},
            {config.resolved_head_size(), AxisRole::head}};
  p.sharding.axis = 1;
  p.init = {Initializer::Kind::truncated_normal, config.residual_std()};
  Parameter& weight = parameters.add(std::move(p));
  Parameter* bias = nullptr;
  if (config.bias) {
    Parameter b;
    b.name = name + ".output.bias";
    b.kind = ParamKind::bias;
    b.axes = {{config.hidden, AxisRole::model}};
    bias = &parameters.add(std::move(b));
  }
  return Linear(weight, bias, 2);
}

// Elements of part i of dimension 0, as a row.
template <class View>
View part(View view, int64_t i) {
  return view.slice(i, 1).reshape({view.columns()});
}
template <class View>
View flat(View view) {
  return view.reshape({view.elements()});
}

}  // namespace

Attention::Attention(const ModelConfig& config, int64_t layer, const std::string& name,
                     ParameterSet& parameters)
    : name_(name),
      layer_(static_cast<uint64_t>(layer)),
      window_(config.window_of(layer)),
      scale_(1 / std::sqrt(static_cast<double>(config.resolved_head_size()))),
      dropout_(config.attention_dropout),
      rotary_(config.position == PositionKind::rotary),
      rotary_base_(config.rotary_base_of(layer)),
      rotary_period_(config.resolved_rotary_size()),
      qkv_weight_(&add_qkv_weight(config, name, parameters)),
      qkv_bias_(add_qkv_bias(config, name, parameters)),
      key_bias_(add_key_bias(config, name, parameters)),
      qkv_(*qkv_weight_, nullptr, 1),
      output_(add_output(config, name, parameters)) {}

Shape Attention::heads_shape(int64_t tokens) const {
  const Shape weight = local_shape(*qkv_weight_);
  return {tokens, weight[1], weight[2]};
}

Shape Attention::qkv_shape(int64_t tokens) const {
  const Shape weight = local_shape(*qkv_weight_);
  return {tokens, 3, weight[1], weight[2]};
}

// The masks are those of the whole set of heads.
DropoutSite Attention::dropout(const Context& context) const {
  DropoutSite site = context.dropout(dropout_, layer_, DropoutPlace::attention_probabilities);
  const Slab heads = slab_of(*qkv_weight_, context.tp_rank(), context.tp_size());
  site.first_head = static_cast<uint64_t>(heads.first[1]);
  return site;
}

void Attention::forward(const Context& context, ConstTensorView n, TensorView y) const {
  ScratchScope scratch(*context.scratch);
  const PackedSequences& packed = context.chunk->packed;
  const auto keep = [&](Shape shape, DType dtype) {
    return context.saved ? context.saved->push(this, shape, dtype) : scratch.tensor(shape, dtype);
  };
  const Shape heads = heads_shape(n.rows());
  const TensorView qkv = keep(qkv_shape(n.rows()), n.dtype());
  const TensorView o = keep(heads, n.dtype());
  const TensorView lse = keep({heads[0], heads[1]}, parameter_dtype(n.dtype()));

  qkv_.forward(context, n, qkv, bias_row(context, scratch, n.dtype()));
  if (rotary_) rotary(packed, rotary_base_, rotary_period_, false, qkv, context.stream);
  attention_forward(packed, qkv, scale_, dropout(context), o, lse, window_, context.stream);
  output_.forward(context, o, y);
}

void Attention::backward(const Context& context, ConstTensorView n, ConstTensorView dy, double beta,
                         TensorView dn, bool bias_done) const {
  ScratchScope scratch(*context.scratch);
  const PackedSequences& packed = context.chunk->packed;
  const TensorView lse = context.saved->pop(this);
  const TensorView o = context.saved->pop(this);
  const TensorView qkv = context.saved->pop(this);
  const TensorView d_o = scratch.tensor(o.shape(), o.dtype());
  const TensorView dqkv = scratch.tensor(qkv.shape(), qkv.dtype());

  output_.backward(context, o, dy, 0, d_o, bias_done);
  attention_backward(packed, d_o, qkv, o, lse, scale_, dropout(context), dqkv, window_,
                     context.stream);
  if (rotary_) rotary(packed, rotary_base_, rotary_period_, true, dqkv, context.stream);
  accumulate_biases(context, dqkv);
  qkv_.backward(context, n, dqkv, beta, dn);
}

// The biases as one row [3 * H * hd], so that one pass adds them all; undefined without any. With
// the copies of a step, in the dtype of the activations.
ConstTensorView Attention::bias_row(const Context& context, ScratchScope& scratch,
                                    DType activations) const {
  if (qkv_bias_ == nullptr && key_bias_ == nullptr) return {};
  std::array<ConstTensorView, 3> parts;
  if (qkv_bias_ != nullptr) {
    const ConstTensorView bias = qkv_bias_->value;
    parts[0] = part(bias, 0);
    parts[2] = part(bias, 1);
  }
  if (key_bias_ != nullptr) parts[1] = flat(ConstTensorView(key_bias_->value));
  const Shape shape = {qkv_shape(1).elements()};
  const auto fill = [&](TensorView to) { join(parts, to, context.stream); };
  if (context.copies) return context.copies->get(this, shape, activations, fill);
  const TensorView row = scratch.tensor(shape, parameter_dtype(activations));
  fill(row);
  return row;
}

void Attention::accumulate_biases(const Context& context, ConstTensorView dqkv) const {
  const TensorView qkv_sink = qkv_bias_ ? flat_sink(*qkv_bias_) : TensorView();
  const TensorView key_sink = key_bias_ ? flat_sink(*key_bias_) : TensorView();
  if (!qkv_sink.defined() && !key_sink.defined()) return;
  std::array<ColumnSink, 3> parts;
  if (qkv_sink.defined()) {
    const TensorView both = qkv_sink.reshape({2, dqkv.columns() / 3});
    parts[0] = {part(both, 0), qkv_bias_->sink_scale};
    parts[2] = {part(both, 1), qkv_bias_->sink_scale};
  }
  if (key_sink.defined()) parts[1] = {key_sink, key_bias_->sink_scale};
  accumulate_column_sums(dqkv.reshape({dqkv.rows(), dqkv.columns()}), parts, context.stream);
}

void Attention::list_products(const ProductListing& of, bool adds,
                              std::vector<Product>& list) const {
  qkv_.list_products(of, adds, list, qkv_bias_ != nullptr || key_bias_ != nullptr);
  output_.list_products(of, false, list);
}

size_t Attention::saved_bytes(int64_t tokens, DType dtype) const {
  const Shape heads = heads_shape(tokens);
  return SavedTensors::rounded_bytes(qkv_shape(tokens), dtype) +
         SavedTensors::rounded_bytes(heads, dtype) +
         SavedTensors::rounded_bytes({heads[0], heads[1]}, parameter_dtype(dtype));
}

double Attention::forward_flops(std::span<const int64_t> lengths) const {
  const Shape heads = heads_shape(1);
  int64_t tokens = 0;
  double pairs = 0;  // of a query and a key that it sees
  for (const int64_t n : lengths) {
    tokens += n;
    const int64_t reach = window_ == 0 ? n : std::min(window_, n);
    pairs += static_cast<double>(n * n - (n - reach) * (n - reach - 1));  // but two corners
  }
  return qkv_.flops(tokens) + output_.flops(tokens) +
         4.0 * pairs * static_cast<double>(heads.elements());
}

}  // namespace amur
