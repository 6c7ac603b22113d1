#include "src/model/encoder.h"

#include <optional>
#include <utility>

#include "kernels/embedding.h"
#include "src/model/attention.h"
#include "src/model/embedding.h"
#include "src/model/feed_forward.h"
#include "src/model/linear.h"
#include "src/model/residual_block.h"

namespace amur {

namespace {

void check(const ModelConfig& c) {
  if (c.hidden < 1) throw UsageError("model.hidden: must be at least 1, got {}", c.hidden);
  if (c.vocab < 1) throw UsageError("the vocabulary is empty");
  if (c.layers < 0) throw UsageError("model.layers: must not be negative, got {}", c.layers);
  if (c.projection < 0)
    throw UsageError("model.projection: must not be negative, got {}", c.projection);
  if (c.layers == 0) return;
  if (c.heads < 1) throw UsageError("model.heads: must be at least 1, got {}", c.heads);
  if (c.head_size == 0 && c.hidden % c.heads != 0)
    throw UsageError("model.heads: {} does not divide model.hidden {}; set model.head_size",
                     c.heads, c.hidden);
  if (c.resolved_head_size() < 1)
    throw UsageError("model.head_size: must be at least 1, got {}", c.resolved_head_size());
  if (c.resolved_ffn() < 1) throw UsageError("model.ffn: must be at least 1, got {}", c.ffn);
  if (c.position == PositionKind::rotary && c.resolved_head_size() % 2 != 0)
    throw UsageError("model.head_size: rotary positions need an even number, got {}",
                     c.resolved_head_size());
  if (c.rotary_size % 2 != 0 || c.rotary_size < 0 || c.rotary_size > c.resolved_head_size())
    throw UsageError("model.rotary_size: an even number up to the head size {}, or 0, got {}",
                     c.resolved_head_size(), c.rotary_size);
  if (c.local_attention < 0 || c.local_attention == 1)
    throw UsageError("model.local_attention: at least 2, or 0, got {}", c.local_attention);
  if (c.local_attention > 0 && c.position != PositionKind::rotary)
    throw UsageError("model.local_attention: local layers need model.position rotary");
  if (c.global_every < 1)
    throw UsageError("model.global_every: must be at least 1, got {}", c.global_every);
  if (c.norm_gate && c.norm_position == NormPosition::pre)
    throw UsageError("model.norm_gate: norms behind blocks are those of norm_position post");
  if (c.position == PositionKind::sinusoidal && c.hidden % 2 != 0)
    throw UsageError("model.hidden: sinusoidal positions need an even number, got {}", c.hidden);
  if (c.position == PositionKind::learned && c.max_length < 1)
    throw UsageError("model.max_length: must be at least 1, got {}", c.max_length);
  if (c.key_bias && !c.bias)
    throw UsageError("model.key_bias: needs model.bias; set both or neither");
}

Linear add_projection(const ModelConfig& config, const std::string& prefix,
                      ParameterSet& parameters) {
  Parameter p;
  p.name = prefix + ".projection.weight";
  p.kind = ParamKind::weight;
  p.axes = {{config.projection, AxisRole::projection}, {config.hidden, AxisRole::model}};
  p.init = {Initializer::Kind::truncated_normal, config.init_std};
  return Linear(parameters.add(std::move(p)), nullptr, 1);
}

}  // namespace

struct Encoder::Parts {
  Parts(const ModelConfig& c, const std::string& prefix, ParameterSet& parameters)
      : config(c),
        set(parameters),
        first(parameters.size()),
        embedding(c, prefix + ".embeddings", parameters) {
    const bool pre = c.norm_position == NormPosition::pre;
    // The norm in front of the next block: under post-norm, that of the block before.
    std::optional<Norm> norm;
    for (int64_t i = 0; i < c.layers; ++i) {
      const std::string layer = fmt::format("{}.layers.{}", prefix, i);
      layer_first.push_back(parameters.size());
      const auto add = [&](const std::string& name, DropoutPlace place, auto make) {
        if (pre && !blocks.empty()) norm.emplace(c, name + ".norm", parameters);
        std::unique_ptr<Branch> branch = make(name);
        blocks.push_back(std::make_unique<ResidualBlock>(
            std::exchange(norm, std::nullopt), std::move(branch), c.norm_position, c.dropout,
            static_cast<uint64_t>(i), place));
        if (!pre) norm.emplace(c, name + ".norm", parameters, c.norm_gate);
      };
      add(layer + ".attention", DropoutPlace::attention_output, [&](const std::string& name) {
        auto branch = std::make_unique<Attention>(c, i, name, parameters);
        attentions.push_back(branch.get());
        return branch;
      });
      add(layer + ".feed_forward", DropoutPlace::feed_forward_output, [&](const std::string& name) {
        return std::make_unique<FeedForward>(c, name, parameters);
      });
    }
    layer_first.push_back(parameters.size());
    for (size_t i = 0; i + 1 < layer_first.size(); ++i)
      for (size_t p = layer_first[i]; p < layer_first[i + 1]; ++p)
        parameters[p].layer = static_cast<int>(i);
    if (pre && c.layers > 0) norm.emplace(c, prefix + ".norm", parameters);
    final_norm = std::move(norm);
    if (c.projection > 0) projection.emplace(add_projection(c, prefix, parameters));
    end = parameters.size();
  }

  ModelConfig config;
  ParameterSet& set;
  // Places in the set: of the encoder's own, and of the layers (the end of the last one too). A
  // norm that belongs to a layer by its name acts in it, or, under post-norm, in front of the next
  // one, whose backward comes before.
  size_t first, end = 0;
  std::vector<size_t> layer_first;
  Embedding embedding;
  std::vector<std::unique_ptr<ResidualBlock>> blocks;  // attention and feed-forward in turn
  std::vector<Attention*> attentions;                  // those in `blocks`
  std::optional<Norm> final_norm;
  std::optional<Linear> projection;
};

Encoder::Encoder(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters) {
  check(config);
  parts_ = std::make_unique<Parts>(config, prefix, parameters);
}

Encoder::~Encoder() = default;

void Encoder::forward(const Context& context, TensorView h) {
  Parts& p = *parts_;
  ScratchScope scratch(*context.scratch);
  const ChunkView& chunk = *context.chunk;
  const DType dtype = parameter_dtype(context.dtype);
  AMUR_CHECK(h.shape() == Shape({chunk.sequences(), embedding_size()}) && h.dtype() == dtype,
             "embeddings {} {} of {} sequences", name_of(h.dtype()), h.shape().text(),
             chunk.sequences());

  TensorView x = scratch.tensor({chunk.tokens(), p.config.hidden}, context.dtype);
  p.embedding.forward(context, x, x, p.embedding.statistics(scratch, x));
  // n is the norm of the residual stream x; the first block has none.
  const TensorView normed = p.blocks.empty() ? x : scratch.tensor(x.shape(), x.dtype());
  ConstTensorView n = x;
  for (size_t i = 0; i < p.blocks.size(); ++i) {
    const std::optional<Norm>& next =
        i + 1 < p.blocks.size() ? p.blocks[i + 1]->norm() : p.final_norm;
    x = p.blocks[i]->forward(context, x, n, next ? &*next : nullptr, normed);
    n = next ? ConstTensorView(normed) : x;
  }
  if (!p.projection) {
    pooling_forward(p.config.pooling, chunk.packed, n, h, context.stream);
    return;
  }
  const Shape shape = {chunk.sequences(), p.config.hidden};
  const TensorView pooled =
      context.saved ? context.saved->push(this, shape, dtype) : scratch.tensor(shape, dtype);
  pooling_forward(p.config.pooling, chunk.packed, n, pooled, context.stream);
  p.projection->forward(context, pooled, h);
}

void Encoder::backward(const Context& context, TensorView dh) {
  Parts& p = *parts_;
  AMUR_CHECK(context.saved != nullptr, "a backward needs what its forward has saved");
  ScratchScope scratch(*context.scratch);
  const ChunkView& chunk = *context.chunk;
  if (p.projection) {
    const TensorView pooled = context.saved->pop(this);
    p.projection->backward(context, pooled, dh, 0, pooled);
    dh = pooled;
  }
  // g is the gradient of the residual stream, all the way down.
  const TensorView g = scratch.tensor({chunk.tokens(), p.config.hidden}, context.dtype);
  if (p.final_norm) {
    ScratchScope inner(*context.scratch);
    const ConstTensorView x = context.saved->peek(p.blocks.back().get());
    const NormStatistics statistics = p.final_norm->statistics(inner, x);
    p.final_norm->forward(context, x, g, statistics);
    pooling_backward(p.config.pooling, chunk.packed, dh, g, context.stream);
    p.final_norm->backward(context, g, x, statistics, {}, g);
  } else {
    pooling_backward(p.config.pooling, chunk.packed, dh, g, context.stream);
  }
  for (size_t i = p.blocks.size(); i-- > 1;) {
    p.blocks[i]->backward(context, context.saved->peek(p.blocks[i - 1].get()), g);
    // Two blocks a layer.
    if (context.group_done && i % 2 == 0) context.group_done((p.blocks.size() - 2 - i) / 2);
  }
  TensorView before;
  NormStatistics statistics;
  if (!p.blocks.empty()) {
    // The first block's input is computed again, and the input of the norm in front of it.
    before = scratch.tensor(g.shape(), g.dtype());
    statistics = p.embedding.statistics(scratch, before);
    const TensorView x = scratch.tensor(g.shape(), g.dtype());
    p.embedding.forward(context, x, before, statistics);
    p.blocks[0]->backward(context, x, g);
    if (context.group_done) context.group_done(p.blocks.size() / 2 - 1);
  }
  p.embedding.backward(context, g, before, statistics);
  if (context.group_done) context.group_done(p.blocks.size() / 2);
}

std::vector<std::vector<Parameter*>> Encoder::backward_groups() {
  Parts& p = *parts_;
  std::vector<std::vector<Parameter*>> groups;
  for (size_t layer = p.layer_first.size() - 1; layer-- > 0;) {
    groups.emplace_back();
    for (size_t i = p.layer_first[layer]; i < p.layer_first[layer + 1]; ++i)
      groups.back().push_back(&p.set[i]);
  }
  groups.emplace_back();
  for (size_t i = p.first; i < p.end; ++i)
    if (i < p.layer_first.front() || i >= p.layer_first.back()) groups.back().push_back(&p.set[i]);
  return groups;
}

void Encoder::list_products(const ProductListing& of, std::vector<Product>& list) const {
  for (const auto& block : parts_->blocks) block->list_products(of, list);
}

size_t Encoder::saved_bytes(int64_t tokens, int64_t sequences, DType dtype) const {
  size_t bytes = 0;
  for (const auto& block : parts_->blocks)
    bytes += block->saved_bytes(tokens, parts_->config.hidden, dtype);
  if (parts_->projection)
    bytes +=
        SavedTensors::rounded_bytes({sequences, parts_->config.hidden}, parameter_dtype(dtype));
  return bytes;
}

double Encoder::forward_flops(std::span<const int64_t> lengths) const {
  double flops = 0;
  for (const auto& block : parts_->blocks) flops += block->branch().forward_flops(lengths);
  return flops;
}

int64_t Encoder::embedding_size() const {
  return parts_->config.embedding_size();
}

Parameter& Encoder::token_table() {
  return parts_->embedding.tokens();
}

Parameter* Encoder::position_table() {
  return parts_->embedding.positions();
}

std::vector<ModelConstant> Encoder::constants() {
  std::vector<ModelConstant> all;
  const auto add_norm = [&](std::optional<Norm>& norm) {
    if (!norm) return;
    all.push_back({norm->name() + ".eps", ConstantKind::norm_eps, &norm->eps()});
    if (norm->kind() == NormKind::layer)
      all.push_back({norm->name() + ".statistics_width", ConstantKind::norm_statistics_width,
                     &norm->statistics_width()});
  };
  add_norm(parts_->embedding.norm());
  for (const auto& block : parts_->blocks) add_norm(block->norm());
  add_norm(parts_->final_norm);
  for (Attention* attention : parts_->attentions)
    all.push_back(
        {attention->name() + ".scale", ConstantKind::attention_scale, &attention->scale()});
  return all;
}

}  // namespace amur
