#include "src/train/huggingface/tensor_layout.h"

#include <utility>

#include "src/core/error.h"

namespace amur {

TensorLayout::TensorLayout(const HuggingFaceEncoder& encoder) : encoder_(encoder) {
  switch (encoder.kind) {
    case HuggingFaceClass::bert:
    case HuggingFaceClass::roberta:
    case HuggingFaceClass::xlm_roberta:
      bert();
      break;
    case HuggingFaceClass::distilbert:
      distilbert();
      break;
    case HuggingFaceClass::modernbert:
      modernbert();
      break;
    case HuggingFaceClass::static_embedding:
      map("embeddings.tokens", "embedding.weight", {encoder.table_rows, encoder.model.hidden}, 0,
          encoder.model.vocab);
      break;
  }
}

const std::vector<TensorLayout::Run>& TensorLayout::runs(std::string_view name) const {
  static const std::vector<Run> none;
  const auto it = runs_.find(name);
  return it == runs_.end() ? none : it->second;
}

std::optional<size_t> TensorLayout::index_of(std::string_view tensor) const {
  const auto it = by_name_.find(tensor);
  return it == by_name_.end() ? std::nullopt : std::optional(it->second);
}

size_t TensorLayout::add(const std::string& tensor, std::vector<int64_t> shape) {
  SafetensorsInfo info;
  info.name = tensor;
  info.dtype = "F32";
  info.shape = std::move(shape);
  tensors_.push_back(std::move(info));
  rests_.push_back({0, tensors_.back().elements()});
  by_name_[tensor] = tensors_.size() - 1;
  return tensors_.size() - 1;
}

void TensorLayout::map(const std::string& parameter, const std::string& tensor,
                       std::vector<int64_t> shape, int64_t first_row, int64_t rows) {
  const size_t index = add(tensor, std::move(shape));
  const SafetensorsInfo& info = tensors_[index];
  if (rows < 0) rows = info.shape[0] - first_row;
  AMUR_CHECK(first_row == 0 || first_row + rows == info.shape[0], "rows {}+{} of the {} of {}",
             first_row, rows, info.shape[0], tensor);
  const int64_t row = info.elements() / info.shape[0], count = rows * row;
  std::vector<Run>& runs = runs_[parameter];
  const int64_t first = runs.empty() ? 0 : runs.back().first + runs.back().count;
  runs.push_back({index, first_row * row, first, count});
  rests_[index] = {first_row > 0 ? 0 : count, info.elements() - count};
}

void TensorLayout::map_linear(const std::string& parameter, const std::string& tensor,
                              int64_t outputs, int64_t inputs, bool bias) {
  map(parameter + ".weight", tensor + ".weight", {outputs, inputs});
  if (bias) map(parameter + ".bias", tensor + ".bias", {outputs});
}

void TensorLayout::map_norm(const std::string& parameter, const std::string& tensor) {
  map(parameter + ".gain", tensor + ".weight", {encoder_.model.hidden});
  if (encoder_.model.bias) map(parameter + ".bias", tensor + ".bias", {encoder_.model.hidden});
}

// The order of a parameter's runs is that in which they are mapped.
void TensorLayout::map_post_norm_layer(const std::string& layer, const LayerNames& names) {
  const ModelConfig& m = encoder_.model;
  const int64_t d = m.hidden, ffn = m.resolved_ffn();
  const std::string attention = layer + ".attention", feed_forward = layer + ".feed_forward";
  for (const std::string* name : {&names.query, &names.key, &names.value})
    map(attention + ".qkv.weight", *name + ".weight", {d, d});
  map(attention + ".qkv.bias", names.query + ".bias", {d});
  map(attention + ".qkv.bias", names.value + ".bias", {d});
  if (m.key_bias)
    map(attention + ".key.bias", names.key + ".bias", {d});
  else
    add(names.key + ".bias", {d});
  map_linear(attention + ".output", names.attention_output, d, d, true);
  map_norm(attention + ".norm", names.attention_norm);
  map_linear(feed_forward + ".up", names.up, ffn, d, true);
  map_linear(feed_forward + ".down", names.down, d, ffn, true);
  map_norm(feed_forward + ".norm", names.output_norm);
}

void TensorLayout::bert() {
  const ModelConfig& m = encoder_.model;
  map("embeddings.tokens", "embeddings.word_embeddings.weight", {encoder_.table_rows, m.hidden}, 0,
      m.vocab);
  map("embeddings.positions", "embeddings.position_embeddings.weight",
      {encoder_.first_position + m.resolved_positions(), m.hidden}, encoder_.first_position);
  const std::string types = "embeddings.token_type_embeddings.weight";
  if (m.token_type)
    map("embeddings.token_type", types, {encoder_.token_types, m.hidden}, 0, 1);
  else
    add(types, {encoder_.token_types, m.hidden});
  map_norm("embeddings.norm", "embeddings.LayerNorm");
  for (int64_t i = 0; i < m.layers; ++i) {
    const std::string layer = fmt::format("encoder.layer.{}", i);
    map_post_norm_layer(fmt::format("layers.{}", i),
                        {.query = layer + ".attention.self.query",
                         .key = layer + ".attention.self.key",
                         .value = layer + ".attention.self.value",
                         .attention_output = layer + ".attention.output.dense",
                         .attention_norm = layer + ".attention.output.LayerNorm",
                         .up = layer + ".intermediate.dense",
                         .down = layer + ".output.dense",
                         .output_norm = layer + ".output.LayerNorm"});
  }
}

void TensorLayout::distilbert() {
  const ModelConfig& m = encoder_.model;
  map("embeddings.tokens", "embeddings.word_embeddings.weight", {encoder_.table_rows, m.hidden}, 0,
      m.vocab);
  map("embeddings.positions", "embeddings.position_embeddings.weight",
      {m.resolved_positions(), m.hidden});
  map_norm("embeddings.norm", "embeddings.LayerNorm");
  for (int64_t i = 0; i < m.layers; ++i) {
    const std::string layer = fmt::format("transformer.layer.{}", i);
    map_post_norm_layer(fmt::format("layers.{}", i),
                        {.query = layer + ".attention.q_lin",
                         .key = layer + ".attention.k_lin",
                         .value = layer + ".attention.v_lin",
                         .attention_output = layer + ".attention.out_lin",
                         .attention_norm = layer + ".sa_layer_norm",
                         .up = layer + ".ffn.lin1",
                         .down = layer + ".ffn.lin2",
                         .output_norm = layer + ".output_layer_norm"});
  }
}

void TensorLayout::modernbert() {
  const ModelConfig& m = encoder_.model;
  const int64_t d = m.hidden, ffn = m.resolved_ffn();
  map("embeddings.tokens", "embeddings.tok_embeddings.weight", {encoder_.table_rows, d}, 0,
      m.vocab);
  map_norm("embeddings.norm", "embeddings.norm");
  for (int64_t i = 0; i < m.layers; ++i) {
    const std::string theirs = fmt::format("layers.{}", i), ours = theirs;
    if (i > 0) map_norm(ours + ".attention.norm", theirs + ".attn_norm");
    map_linear(ours + ".attention.qkv", theirs + ".attn.Wqkv", 3 * d, d, false);
    map_linear(ours + ".attention.output", theirs + ".attn.Wo", d, d, false);
    map_norm(ours + ".feed_forward.norm", theirs + ".mlp_norm");
    map_linear(ours + ".feed_forward.up", theirs + ".mlp.Wi", 2 * ffn, d, false);
    map_linear(ours + ".feed_forward.down", theirs + ".mlp.Wo", d, ffn, false);
  }
  map_norm("norm", "final_norm");
}

std::string_view name_in_tower(std::string_view parameter) {
  return parameter.substr(parameter.find('.') + 1);
}

}  // namespace amur
