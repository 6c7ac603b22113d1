#include "src/model/embedding.h"

#include "kernels/elementwise.h"
#include "kernels/embedding.h"

namespace amur {

namespace {

Parameter& add_table(ParameterSet& parameters, std::string name, Axis rows,
                     const ModelConfig& config) {
  Parameter table;
  table.name = std::move(name);
  table.kind = ParamKind::embedding;
  table.axes = {rows, {config.hidden, AxisRole::model}};
  if (rows.role == AxisRole::vocab) table.sharding.axis = 0;
  table.init = {Initializer::Kind::normal, config.embedding_std};
  return parameters.add(std::move(table));
}

TensorView sink_of(const Parameter& parameter) {
  return parameter.frozen ? TensorView() : parameter.sink;
}

}  // namespace

Embedding::Embedding(const ModelConfig& config, const std::string& name, ParameterSet& parameters)
    : tokens_(&add_table(parameters, name + ".tokens", {config.vocab, AxisRole::vocab}, config)),
      sinusoidal_(config.layers > 0 && config.position == PositionKind::sinusoidal),
      dropout_(config.dropout) {
  if (config.layers == 0) return;
  if (config.position == PositionKind::learned)
    positions_ = &add_table(parameters, name + ".positions",
                            {config.resolved_positions(), AxisRole::position}, config);
  if (config.token_type) {
    Parameter type;
    type.name = name + ".token_type";
    type.kind = ParamKind::bias;
    type.axes = {{config.hidden, AxisRole::model}};
    type.init = {Initializer::Kind::normal, config.embedding_std};
    token_type_ = &parameters.add(std::move(type));
  }
  norm_.emplace(config, name + ".norm", parameters);
}

TableRows Embedding::token_rows(const Context& context) const {
  const Slab slab = slab_of(*tokens_, context.tp_rank(), context.tp_size());
  AMUR_CHECK(tokens_->value.shape() == slab.count, "{}: {} here, {} on tp rank {} of {}",
             tokens_->name, tokens_->value.shape().text(), slab.count.text(), context.tp_rank(),
             context.tp_size());
  return {slab.first[0], tokens_->axes[0].size};
}

void Embedding::lookup(const Context& context, TensorView x) const {
  const ChunkView& chunk = *context.chunk;
  embedding_forward(chunk.packed, chunk.ids, tokens_->value,
                    positions_ ? positions_->value.view() : TensorView(), x, token_rows(context),
                    context.stream);
  // One rank has the row, the others 0: exact in any dtype.
  if (context.tp_size() > 1) context.tp->all_reduce(x, ReduceOp::sum, context.stream);
  if (sinusoidal_) add_sinusoidal_positions(chunk.packed, x, context.stream);
  if (token_type_ != nullptr) add_bias(token_type_->value.view(), x, context.stream);
}

void Embedding::forward(const Context& context, TensorView x, TensorView before,
                        const NormStatistics& statistics) const {
  lookup(context, norm_ ? before : x);
  if (norm_) norm_->forward(context, before, x, statistics);
  const DropoutSite site = dropout(context);
  if (site.probability > 0)
    dropout_add_forward(context.chunk->packed, site, x, {}, x, context.stream);
}

void Embedding::backward(const Context& context, TensorView dx, ConstTensorView before,
                         const NormStatistics& statistics) const {
  const PackedSequences& packed = context.chunk->packed;
  const DropoutSite site = dropout(context);
  if (site.probability > 0) dropout_backward(packed, site, dx, dx, {}, context.stream);
  if (norm_) norm_->backward(context, dx, before, statistics, {}, dx);
  if (const TensorView sink = sink_of(*tokens_); sink.defined())
    embedding_backward(packed, context.chunk->ids, dx, tokens_->sink_scale, sink, {},
                       token_rows(context), context.stream);
  if (positions_ != nullptr)
    if (const TensorView sink = sink_of(*positions_); sink.defined())
      embedding_backward(packed, context.chunk->ids, dx, positions_->sink_scale, {}, sink, {},
                         context.stream);
  if (token_type_ != nullptr)
    if (const TensorView sink = sink_of(*token_type_); sink.defined())
      accumulate_column_sums(token_type_->sink_scale, dx, sink, context.stream);
}

}  // namespace amur
