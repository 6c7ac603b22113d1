#include "src/train/huggingface/export_files.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "src/core/error.h"
#include "src/train/data/tokenizer_json.h"
#include "src/train/huggingface/pretrained_model.h"
#include "src/train/json_reader.h"

namespace amur {
namespace {

using Json = OrderedJson;
// Of vocabularies, in which members are looked for.
using TokenizerJson = JsonNode::Json;

std::string text_of(const Json& json) {
  return json.dump(2) + "\n";
}

TokenizerJson truncation_json(int64_t max_length) {
  return {{"direction", "Right"},
          {"max_length", max_length},
          {"strategy", "LongestFirst"},
          {"stride", 0}};
}

// A special token by its usual names, as the tokenizer has it.
struct Token {
  std::string content;
  int64_t id = -1;
};
Token special_token(const TokenizerJson& tokenizer, std::initializer_list<const char*> names) {
  const auto added = tokenizer.find("added_tokens");
  if (added == tokenizer.end() || !added->is_array()) return {};
  for (const char* name : names)
    for (const TokenizerJson& entry : *added)
      if (entry.is_object() && entry.value("content", TokenizerJson()) == name &&
          entry.value("id", TokenizerJson()).is_number_integer())
        return {name, entry["id"].get<int64_t>()};
  return {};
}

struct NamedTokens {
  Token pad, unknown, begin, end, mask;
};
NamedTokens named_tokens(const TokenizerJson& tokenizer) {
  NamedTokens t;
  t.pad = special_token(tokenizer, {"[PAD]", "<pad>"});
  t.unknown = special_token(tokenizer, {"[UNK]", "<unk>"});
  t.begin = special_token(tokenizer, {"[CLS]", "<s>"});
  t.end = special_token(tokenizer, {"[SEP]", "</s>"});
  t.mask = special_token(tokenizer, {"[MASK]", "<mask>"});
  if (t.pad.id < 0) t.pad = t.unknown;  // what is padded is masked: any token will do
  return t;
}

std::string tokenizer_text(const ExportedModel& m) {
  switch (m.tokenizer.tokenizer_kind()) {
    case TokenizerKind::wordpiece:
    case TokenizerKind::bpe:
    case TokenizerKind::unigram:
      return m.tokenizer.serialised();
    case TokenizerKind::sentencepiece:
      return sentencepiece_tokenizer_json(m.tokenizer.serialised(), "the checkpoint's vocabulary");
    case TokenizerKind::ngrams:
      break;
  }
  throw UsageError("data.tokenizer {}: no tokenizer.json can express it", m.tokenizer.kind());
}

// Of a static embedding model, whose tokenizer is asked for no markers.
std::string static_tokenizer_text(const ExportedModel& m) {
  const int64_t max_length = m.config.model.max_length;
  if (m.tokenizer.tokenizer_kind() == TokenizerKind::sentencepiece)
    return static_tokenizer_json(m.tokenizer.serialised(), max_length,
                                 "the checkpoint's vocabulary");
  const std::string text = tokenizer_text(m);
  TokenizerJson json = TokenizerJson::parse(text);
  if (const auto markers = json.find("post_processor");
      markers != json.end() && !markers->is_null())
    throw UsageError(
        "model.layers 0 with data.tokenizer {} and a post_processor: StaticEmbedding has no "
        "markers; set post_processor to null in the tokenizer.json",
        m.tokenizer.kind());
  TokenizerJson& cut = json["truncation"];
  if (cut.is_null() && max_length >= kMaxStaticLength) return text;
  if (cut.is_object() && cut.contains("max_length") && cut["max_length"] == max_length) return text;
  cut = truncation_json(max_length);
  return json.dump();
}

std::map<std::string, std::string> tokenizer_files(const ExportedModel& m,
                                                   const std::string& tokenizer,
                                                   const NamedTokens& tokens) {
  std::map<std::string, std::string> files;
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
              {"model_max_length", m.config.model.max_length},
              {"model_input_names", {"input_ids", "attention_mask"}},
              {"clean_up_tokenization_spaces", false}};
  Json map = Json::object();
  const auto name = [&](const char* role, const Token& token) {
    if (token.id < 0) return;
    config[role] = token.content;
    map[role] = token.content;
  };
  name("unk_token", tokens.unknown);
  name("pad_token", tokens.pad);
  name("bos_token", tokens.begin);
  name("eos_token", tokens.end);
  name("cls_token", tokens.begin);
  name("sep_token", tokens.end);
  name("mask_token", tokens.mask);
  files["tokenizer.json"] = tokenizer;
  files["tokenizer_config.json"] = text_of(config);
  files["special_tokens_map.json"] = text_of(map);
  return files;
}

std::string prompts_text(const ExportedModel& m) {
  const auto it = m.info.carried.find("config_sentence_transformers.json");
  const bool carried = it != m.info.carried.end();
  Json json = carried ? JsonNode::parse_ordered(it->second, it->first) : Json::object();
  Prompts now;
  if (!m.config.data.sources.empty())
    now = {m.config.data.sources[0].query_prefix, m.config.data.sources[0].document_prefix};
  if (carried && prompts_of(it->second, it->first) == now) return it->second;
  Json& prompts = json["prompts"];
  if (!prompts.is_object()) prompts = Json::object();
  prompts["query"] = now.query;
  prompts["document"] = now.document;
  if (!json.contains("default_prompt_name")) json["default_prompt_name"] = nullptr;
  if (!json.contains("similarity_fn_name")) json["similarity_fn_name"] = "cosine";
  return text_of(json);
}

std::string lengths_text(const ExportedModel& m) {
  const auto it = m.info.carried.find("sentence_bert_config.json");
  const bool carried = m.as_imported && it != m.info.carried.end();
  Json json =
      carried ? JsonNode::parse_ordered(it->second, it->first) : Json{{"max_seq_length", 0}};
  if (carried && json.contains("max_seq_length") &&
      json["max_seq_length"] == m.config.model.max_length)
    return it->second;
  json["max_seq_length"] = m.config.model.max_length;
  if (!json.contains("do_lower_case")) json["do_lower_case"] = false;
  return text_of(json);
}

}  // namespace

std::map<std::string, std::string> text_files(const ExportedModel& m) {
  const ModelConfig& model = m.encoder.model;
  const bool tables = m.encoder.kind == HuggingFaceClass::static_embedding;
  std::map<std::string, std::string> files;
  Json modules = Json::array();
  const auto add_module = [&](const char* type, const std::string& path) {
    modules.push_back({{"idx", modules.size()},
                       {"name", std::to_string(modules.size())},
                       {"path", path},
                       {"type", fmt::format("sentence_transformers.models.{}", type)}});
  };
  if (tables) {
    add_module("StaticEmbedding", "");
    files["tokenizer.json"] = static_tokenizer_text(m);
  } else {
    const std::string tokenizer = tokenizer_text(m);
    const NamedTokens tokens = named_tokens(TokenizerJson::parse(tokenizer));
    add_module("Transformer", "");
    add_module("Pooling", "1_Pooling");
    const bool cls = model.pooling == PoolingKind::cls;
    files["1_Pooling/config.json"] = text_of({{"word_embedding_dimension", model.hidden},
                                              {"pooling_mode_cls_token", cls},
                                              {"pooling_mode_mean_tokens", !cls},
                                              {"pooling_mode_max_tokens", false},
                                              {"pooling_mode_mean_sqrt_len_tokens", false}});
    files["sentence_bert_config.json"] = lengths_text(m);
    const auto base = m.info.carried.find("config.json");
    SpecialTokens ids;
    ids.pad = tokens.pad.id;
    ids.begin = tokens.begin.id;
    ids.end = tokens.end.id;
    files["config.json"] = encoder_json(
        m.encoder, ids, m.as_imported && base != m.info.carried.end() ? base->second : "");
    for (auto& [name, text] : tokenizer_files(m, tokenizer, tokens)) {
      const auto kept = m.info.carried.find(name);
      files[name] = kept != m.info.carried.end() ? kept->second : text;
    }
    if (const auto list = m.info.carried.find("vocab.txt"); list != m.info.carried.end())
      files["vocab.txt"] = list->second;
  }
  if (model.projection > 0) {
    add_module("Dense", "2_Dense");
    files[std::string(kDenseFolder) + "config.json"] =
        text_of({{"in_features", model.hidden},
                 {"out_features", model.projection},
                 {"bias", false},
                 {"activation_function", "torch.nn.modules.linear.Identity"}});
  }
  add_module("Normalize", fmt::format("{}_Normalize", modules.size()));
  files["modules.json"] = text_of(modules);
  files["config_sentence_transformers.json"] = prompts_text(m);
  return files;
}

}  // namespace amur
