#include "src/train/huggingface/model_class.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "src/core/error.h"
#include "src/train/json_reader.h"

namespace amur {
namespace {

constexpr int64_t kMaxHidden = 65536, kMaxLayers = 1024, kMaxHeads = 1024, kMaxFfn = 262144,
                  kMaxVocab = int64_t{1} << 24, kMaxPositions = int64_t{1} << 20;

struct ActivationName {
  const char* name;
  ActivationKind kind;
};
// The first of a kind is the one that is written.
constexpr ActivationName kActivations[] = {{"gelu", ActivationKind::gelu},
                                           {"gelu_new", ActivationKind::gelu_tanh},
                                           {"gelu_pytorch_tanh", ActivationKind::gelu_tanh},
                                           {"relu", ActivationKind::relu}};

ActivationKind activation_of(const JsonNode& json, const char* key) {
  const std::string text = json.text_or(key, "gelu");
  for (const ActivationName& name : kActivations)
    if (text == name.name) return name.kind;
  json.refuse(key, "it must be \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\" or \"relu\"");
}

const char* name_of_activation(ActivationKind kind) {
  for (const ActivationName& name : kActivations)
    if (kind == name.kind) return name.name;
  return "";
}

void refuse_common(const JsonNode& json) {
  json.only("is_decoder", false);
  json.only("add_cross_attention", false);
  json.only("is_encoder_decoder", false);
  if (json.has("quantization_config"))
    json.refuse("quantization_config", "give the weights as numbers");
  if (json.has("pruned_heads") && !json["pruned_heads"].json().empty())
    json.refuse("pruned_heads", "all heads must be there");
}

void set_post_norm(ModelConfig& m) {
  m.norm = NormKind::layer;
  m.norm_position = NormPosition::post;
  m.position = PositionKind::learned;
  m.bias = m.key_bias = true;
}

void read_sizes(const JsonNode& json, const char* layers, const char* hidden, const char* heads,
                const char* ffn, HuggingFaceEncoder& e) {
  ModelConfig& m = e.model;
  m.layers = json[layers].whole(1, kMaxLayers);
  m.hidden = json[hidden].whole(1, kMaxHidden);
  m.heads = json[heads].whole(1, kMaxHeads);
  m.ffn = json[ffn].whole(1, kMaxFfn);
  if (m.hidden % m.heads != 0)
    throw UsageError("{}: {} {} does not divide {} {}", json.origin(), heads, m.heads, hidden,
                     m.hidden);
  e.table_rows = m.vocab = json["vocab_size"].whole(1, kMaxVocab);
  m.max_length = json["max_position_embeddings"].whole(3, kMaxPositions);
  if (m.position == PositionKind::learned) m.positions = m.max_length;
  m.init_std = m.embedding_std = json.real_or("initializer_range", 0, 10, 0.02);
}

constexpr double kLargestDropout = 0.999;

HuggingFaceEncoder read_bert(const JsonNode& json) {
  HuggingFaceEncoder e;
  set_post_norm(e.model);
  read_sizes(json, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
             e);
  json.only("position_embedding_type", "absolute");
  e.model.activation = activation_of(json, "hidden_act");
  e.model.norm_eps = json.real_or("layer_norm_eps", 1e-30, 1, 1e-12);
  e.model.dropout = json.real_or("hidden_dropout_prob", 0, kLargestDropout, 0.1);
  e.model.attention_dropout = json.real_or("attention_probs_dropout_prob", 0, kLargestDropout, 0.1);
  e.token_types = json.whole_or("type_vocab_size", 1, kMaxHidden, 2);
  e.model.token_type = true;
  return e;
}

// RoBERTa's positions are counted from the padding token's number on (its modeling_roberta.py,
// create_position_ids_from_input_ids).
HuggingFaceEncoder read_roberta(const JsonNode& json, HuggingFaceClass kind) {
  HuggingFaceEncoder e = read_bert(json);
  e.kind = kind;
  e.first_position = json.whole_or("pad_token_id", 0, kMaxVocab, 1) + 1;
  e.model.positions -= e.first_position;
  if (e.model.positions < 3)
    throw UsageError("{}: max_position_embeddings: of {} positions {} stand in front of the first",
                     json.origin(), e.model.max_length, e.first_position);
  e.model.max_length = e.model.positions;
  return e;
}

HuggingFaceEncoder read_distilbert(const JsonNode& json) {
  constexpr double kEps = 1e-12;  // of all its norms
  HuggingFaceEncoder e;
  e.kind = HuggingFaceClass::distilbert;
  set_post_norm(e.model);
  read_sizes(json, "n_layers", "dim", "n_heads", "hidden_dim", e);
  json.only("sinusoidal_pos_embds", false);
  e.model.activation = activation_of(json, "activation");
  e.model.norm_eps = kEps;
  e.model.dropout = json.real_or("dropout", 0, kLargestDropout, 0.1);
  e.model.attention_dropout = json.real_or("attention_dropout", 0, kLargestDropout, 0.1);
  return e;
}

// The kinds of a ModernBERT's layers, as config.json spells them.
constexpr const char* kFullAttention = "full_attention";
constexpr const char* kSlidingAttention = "sliding_attention";

// Every how many layers of a ModernBERT one sees the whole text, from the first on; the others see
// a window. Newer versions list the layers.
int64_t global_every(const JsonNode& json, int64_t layers) {
  if (!json.has("layer_types"))
    return json.whole_or("global_attn_every_n_layers", 1, kMaxLayers, 3);
  const JsonNode types = json["layer_types"];
  if (static_cast<int64_t>(types.list_size()) != layers)
    types.refuse(fmt::format("{} layers are wanted", layers));
  std::vector<bool> full;
  for (const auto& type : types.json()) {
    if (type != kFullAttention && type != kSlidingAttention)
      types.refuse(
          fmt::format("it must name \"{}\" and \"{}\"", kFullAttention, kSlidingAttention));
    full.push_back(type == kFullAttention);
  }
  const auto second = std::find(full.begin() + 1, full.end(), true);
  const int64_t every = second - full.begin();
  for (int64_t i = 0; i < layers; ++i)
    if (full[static_cast<size_t>(i)] != (i % every == 0))
      types.refuse(fmt::format("layers 0, n, 2n, .. must be \"{}\" and the others \"{}\"",
                               kFullAttention, kSlidingAttention));
  return every;
}

// The base of rotary positions in the layers of a kind.
double rotary_base_of(const JsonNode& json, const char* kind, const char* old_key,
                      double otherwise) {
  constexpr double kLargest = 1e12;
  if (!json.has("rope_parameters")) return json.real_or(old_key, 1, kLargest, otherwise);
  const JsonNode all = json["rope_parameters"];
  if (!all.has(kind)) all.refuse(fmt::format("an entry for \"{}\" is wanted", kind));
  const JsonNode entry = all[kind];
  entry.only("rope_type", "default");
  return entry.real_or("rope_theta", 1, kLargest, json.real_or(old_key, 1, kLargest, otherwise));
}

HuggingFaceEncoder read_modernbert(const JsonNode& json) {
  constexpr double kGlobalBase = 160000, kLocalBase = 10000;
  HuggingFaceEncoder e;
  e.kind = HuggingFaceClass::modernbert;
  ModelConfig& m = e.model;
  m.norm = NormKind::layer;
  m.norm_position = NormPosition::pre;
  m.position = PositionKind::rotary;
  m.activation = ActivationKind::geglu;
  m.bias = m.key_bias = false;
  read_sizes(json, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
             e);
  if (m.hidden / m.heads % 2 != 0)
    throw UsageError(
        "{}: hidden_size {} / num_attention_heads {}: rotary positions need heads of "
        "an even size",
        json.origin(), m.hidden, m.heads);
  json.only("hidden_activation", "gelu");
  for (const char* key : {"norm_bias", "attention_bias", "mlp_bias"}) json.only(key, false);
  if (json.has("rope_scaling")) json.refuse("rope_scaling", "it must be null or left out");
  m.norm_eps = json.real_or("norm_eps", 1e-30, 1, 1e-5);
  m.dropout = json.real_or("mlp_dropout", 0, kLargestDropout, 0);
  m.attention_dropout = json.real_or("attention_dropout", 0, kLargestDropout, 0);
  m.rotary_base = rotary_base_of(json, kFullAttention, "global_rope_theta", kGlobalBase);
  const int64_t every = global_every(json, m.layers);
  if (every == 1 || m.layers == 1) return e;  // no layer is local
  m.global_every = every;
  m.local_attention = json.whole_or("local_attention", 2, 2 * kMaxPositions, 128);
  m.local_rotary_base = rotary_base_of(json, kSlidingAttention, "local_rope_theta", kLocalBase);
  return e;
}

// What keeps a model from being of a class.
std::vector<std::string> against(const ModelConfig& m, HuggingFaceClass kind) {
  std::vector<std::string> why;
  const auto unless = [&](bool holds, const char* text) {
    if (!holds) why.emplace_back(text);
  };
  unless(m.layers > 0, "model.layers 0");
  unless(m.norm == NormKind::layer, "model.norm rms");
  unless(!m.norm_gate, "model.norm_gate true");
  unless(m.heads > 0 && m.resolved_head_size() * m.heads == m.hidden,
         "model.head_size other than model.hidden / model.heads");
  if (kind == HuggingFaceClass::modernbert) {
    unless(m.norm_position == NormPosition::pre, "model.norm_position post");
    unless(m.position == PositionKind::rotary, "model.position other than rotary");
    unless(m.resolved_rotary_size() == m.resolved_head_size(), "model.rotary_size");
    unless(m.activation == ActivationKind::geglu, "model.activation other than geglu");
    unless(!m.bias, "model.bias true");
  } else {
    unless(m.norm_position == NormPosition::post, "model.norm_position pre");
    unless(m.position == PositionKind::learned, "model.position other than learned");
    unless(!is_gated(m.activation), "model.activation swiglu or geglu");
    unless(m.bias, "model.bias false");
  }
  if (kind == HuggingFaceClass::distilbert || kind == HuggingFaceClass::modernbert)
    unless(!m.token_type, "model.token_type true");
  return why;
}

// Whether a ModernBERT's config.json says of positions and of each layer's attention what the model
// has.
bool says_attention(const OrderedJson& json, const ModelConfig& model) {
  if (json.contains("layer_types") &&
      static_cast<int64_t>(json["layer_types"].size()) != model.layers)
    return false;
  const JsonNode::Json sorted(json);
  const ModelConfig said = read_modernbert(JsonNode(sorted, "config.json")).model;
  for (int64_t i = 0; i < model.layers; ++i)
    if (said.window_of(i) != model.window_of(i) ||
        said.rotary_base_of(i) != model.rotary_base_of(i))
      return false;
  return said.max_length >= model.max_length;
}

// Puts it there, in the spelling of newer versions where that is used, else in the one that all
// versions read.
void set_attention(OrderedJson& json, const ModelConfig& m) {
  const bool local = m.local_attention > 0;
  const double local_base = m.local_rotary_base != 0 ? m.local_rotary_base : m.rotary_base;
  json["max_position_embeddings"] = m.max_length;
  json["local_attention"] = local ? m.local_attention : 2 * m.max_length;
  if (json.contains("layer_types")) {
    auto& types = json["layer_types"] = OrderedJson::array();
    for (int64_t i = 0; i < m.layers; ++i)
      types.push_back(m.is_local(i) ? kSlidingAttention : kFullAttention);
  } else {
    json["global_attn_every_n_layers"] = local ? m.global_every : 1;
  }
  if (json.contains("rope_parameters")) {
    for (const auto& [kind, base] :
         {std::pair(kFullAttention, m.rotary_base), std::pair(kSlidingAttention, local_base)})
      json["rope_parameters"][kind] = {{"rope_type", "default"}, {"rope_theta", base}};
  } else {
    json["global_rope_theta"] = m.rotary_base;
    json["local_rope_theta"] = local_base;
  }
}

std::string list_of(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

const char* name_of(HuggingFaceClass c) {
  switch (c) {
    case HuggingFaceClass::bert:
      return "BERT";
    case HuggingFaceClass::distilbert:
      return "DistilBERT";
    case HuggingFaceClass::roberta:
      return "RoBERTa";
    case HuggingFaceClass::xlm_roberta:
      return "XLM-RoBERTa";
    case HuggingFaceClass::modernbert:
      return "ModernBERT";
    case HuggingFaceClass::static_embedding:
      return "StaticEmbedding";
  }
  return "?";
}

HuggingFaceEncoder read_encoder(std::string_view text, const std::string& origin) {
  const JsonNode::Json root = JsonNode::parse(text, origin);
  const JsonNode json(root, origin);
  const std::string type = json.text_or("model_type", "");
  refuse_common(json);
  if (type == "bert") return read_bert(json);
  if (type == "distilbert") return read_distilbert(json);
  if (type == "roberta") return read_roberta(json, HuggingFaceClass::roberta);
  if (type == "xlm-roberta") return read_roberta(json, HuggingFaceClass::xlm_roberta);
  if (type == "modernbert") return read_modernbert(json);
  json.refuse(
      "model_type",
      "it must be \"bert\", \"distilbert\", \"roberta\", \"xlm-roberta\" or \"modernbert\"");
}

HuggingFaceEncoder encoder_class(const ModelConfig& model, std::optional<HuggingFaceClass> was) {
  HuggingFaceEncoder e;
  e.model = model;
  e.table_rows = model.vocab;
  e.token_types = model.layers > 0 ? 2 : 0;
  if (model.layers == 0) {
    e.kind = HuggingFaceClass::static_embedding;
    return e;
  }
  std::string reasons;
  for (const HuggingFaceClass kind : {was.value_or(HuggingFaceClass::bert), HuggingFaceClass::bert,
                                      HuggingFaceClass::modernbert}) {
    const std::vector<std::string> why = against(model, kind);
    e.kind = kind;
    if (why.empty()) return e;
    const std::string reason = fmt::format("; the {} class: {}", name_of(kind), list_of(why));
    if (reasons.find(reason) == std::string::npos) reasons += reason;
  }
  throw UsageError("no class of Hugging Face can express this model. In the way of{}",
                   reasons.substr(1));
}

std::string encoder_json(const HuggingFaceEncoder& e, const SpecialTokens& tokens,
                         const std::string& base) {
  const ModelConfig& m = e.model;
  OrderedJson json =
      base.empty() ? OrderedJson::object() : JsonNode::parse_ordered(base, "config.json");
  const bool fresh = base.empty();
  const auto set_activation = [&](const char* key, ActivationKind kind) {
    // Of several names of one activation the old one stays.
    if (fresh || read_encoder(base, "config.json").model.activation != kind)
      json[key] = name_of_activation(kind);
  };
  const auto sizes = [&](const char* layers, const char* hidden, const char* heads,
                         const char* ffn) {
    json[layers] = m.layers;
    json[hidden] = m.hidden;
    json[heads] = m.heads;
    json[ffn] = m.resolved_ffn();
    json["vocab_size"] = e.table_rows;
  };
  const auto only_fresh = [&](const char* key, const OrderedJson& value) {
    if (fresh) json[key] = value;
  };
  for (const char* key : {"torch_dtype", "dtype"})
    if (json.contains(key)) json[key] = "float32";
  switch (e.kind) {
    case HuggingFaceClass::bert:
    case HuggingFaceClass::roberta:
    case HuggingFaceClass::xlm_roberta:
      if (e.kind == HuggingFaceClass::bert) {
        json["architectures"] = {"BertModel"};
        json["model_type"] = "bert";
      } else if (e.kind == HuggingFaceClass::roberta) {
        json["architectures"] = {"RobertaModel"};
        json["model_type"] = "roberta";
      } else {
        json["architectures"] = {"XLMRobertaModel"};
        json["model_type"] = "xlm-roberta";
      }
      sizes("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size");
      set_activation("hidden_act", m.activation);
      json["max_position_embeddings"] = e.first_position + m.resolved_positions();
      json["type_vocab_size"] = e.token_types;
      json["layer_norm_eps"] = m.norm_eps;
      only_fresh("position_embedding_type", "absolute");
      json["hidden_dropout_prob"] = m.dropout;
      json["attention_probs_dropout_prob"] = m.attention_dropout;
      break;
    case HuggingFaceClass::distilbert:
      json["architectures"] = {"DistilBertModel"};
      json["model_type"] = "distilbert";
      sizes("n_layers", "dim", "n_heads", "hidden_dim");
      set_activation("activation", m.activation);
      json["max_position_embeddings"] = m.resolved_positions();
      json["dropout"] = m.dropout;
      json["attention_dropout"] = m.attention_dropout;
      break;
    case HuggingFaceClass::modernbert:
      json["architectures"] = {"ModernBertModel"};
      json["model_type"] = "modernbert";
      sizes("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size");
      json["hidden_activation"] = "gelu";
      json["norm_eps"] = m.norm_eps;
      for (const char* key : {"norm_bias", "attention_bias", "mlp_bias"}) json[key] = false;
      if (fresh || !says_attention(json, m)) set_attention(json, m);
      for (const char* key : {"embedding_dropout", "mlp_dropout"}) json[key] = m.dropout;
      json["attention_dropout"] = m.attention_dropout;
      break;
    case HuggingFaceClass::static_embedding:
      AMUR_CHECK(false, "a static embedding model has no config.json");
  }
  if (fresh) {
    json["initializer_range"] = m.init_std;
    const auto set_token = [&](const char* key, int64_t id) {
      json[key] = id < 0 ? OrderedJson(nullptr) : OrderedJson(id);
    };
    set_token("pad_token_id", tokens.pad);
    set_token("bos_token_id", tokens.begin);
    set_token("eos_token_id", tokens.end);
    if (e.kind == HuggingFaceClass::modernbert) {
      set_token("cls_token_id", tokens.begin);
      set_token("sep_token_id", tokens.end);
    }
  }
  return json.dump(2) + "\n";
}

std::string interchange_class(const ModelConfig& m) {
  try {
    return fmt::format("the {} class{}", name_of(encoder_class(m, std::nullopt).kind),
                       m.towers == TowerKind::separate ? ", each tower by itself" : "");
  } catch (const UsageError& e) {
    return e.what();
  }
}

}  // namespace amur
