#include "src/model/feed_forward.h"

#include <numeric>
#include <utility>

namespace amur {

namespace {

Linear add_up(const ModelConfig& config, const std::string& name, ParameterSet& parameters) {
  const bool gated = is_gated(config.activation);
  std::vector<Axis> outputs = {{config.resolved_ffn(), AxisRole::ffn}};
  if (gated) outputs.insert(outputs.begin(), {2, AxisRole::fixed});
  Parameter p;
  p.name = name + ".up.weight";
  p.kind = ParamKind::weight;
  p.axes = outputs;
  p.axes.push_back({config.hidden, AxisRole::model});
  p.sharding.axis = gated ? 1 : 0;
  p.init = {Initializer::Kind::truncated_normal, config.init_std};
  Parameter& weight = parameters.add(std::move(p));
  if (!config.bias) return Linear(weight, nullptr, 1);
  Parameter b;
  b.name = name + ".up.bias";
  b.kind = ParamKind::bias;
  b.axes = outputs;
  b.sharding.axis = gated ? 1 : 0;
  return Linear(weight, &parameters.add(std::move(b)), 1);
}

Linear add_down(const ModelConfig& config, const std::string& name, ParameterSet& parameters) {
  Parameter p;
  p.name = name + ".down.weight";
  p.kind = ParamKind::weight;
  p.axes = {{config.hidden, AxisRole::model}, {config.resolved_ffn(), AxisRole::ffn}};
  p.sharding.axis = 1;
  p.init = {Initializer::Kind::truncated_normal, config.residual_std()};
  Parameter& weight = parameters.add(std::move(p));
  if (!config.bias) return Linear(weight, nullptr, 1);
  Parameter b;
  b.name = name + ".down.bias";
  b.kind = ParamKind::bias;
  b.axes = {{config.hidden, AxisRole::model}};
  return Linear(weight, &parameters.add(std::move(b)), 1);
}

}  // namespace

FeedForward::FeedForward(const ModelConfig& config, const std::string& name,
                         ParameterSet& parameters)
    : activation_(config.activation),
      up_(add_up(config, name, parameters)),
      down_(add_down(config, name, parameters)) {}

void FeedForward::forward(const Context& context, ConstTensorView n, TensorView y) const {
  ScratchScope scratch(*context.scratch);
  const Shape shape = {n.rows(), up_.outputs()};
  const TensorView u = context.saved ? context.saved->push(this, shape, n.dtype())
                                     : scratch.tensor(shape, n.dtype());
  const TensorView a = scratch.tensor({n.rows(), down_.inputs()}, n.dtype());
  up_.forward(context, n, u);
  activation_forward(activation_, u, a, context.stream);
  down_.forward(context, a, y);
}

void FeedForward::backward(const Context& context, ConstTensorView n, ConstTensorView dy,
                           double beta, TensorView dn, bool bias_done) const {
  ScratchScope scratch(*context.scratch);
  const TensorView u = context.saved->pop(this);
  const TensorView a = scratch.tensor({n.rows(), down_.inputs()}, n.dtype());
  // The gradient of the activation's result comes before that result, which takes its place; so the
  // activation is gone through once.
  down_.backward_input(context, dy, 0, a);
  const ColumnSink bias = up_.bias_sink();
  activation_backward(activation_, a, u, u, {a, bias.sink, bias.scale}, context.stream);
  down_.accumulate(context, a, dy, bias_done);
  up_.backward(context, n, u, beta, dn, bias.sink.defined());
}

void FeedForward::list_products(const ProductListing& of, bool adds,
                                std::vector<Product>& list) const {
  up_.list_products(of, adds, list);
  down_.list_products(of, false, list);
}

size_t FeedForward::saved_bytes(int64_t tokens, DType dtype) const {
  return SavedTensors::rounded_bytes({tokens, up_.outputs()}, dtype);
}

double FeedForward::forward_flops(std::span<const int64_t> lengths) const {
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  return up_.flops(tokens) + down_.flops(tokens);
}

}  // namespace amur
