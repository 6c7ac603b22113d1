#include "src/train/data/tokenizer_json.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "src/train/data/json_node.h"
#include "src/train/data/sentencepiece_model.h"

namespace amur {
namespace {

using TokenizerJson = JsonNode::Json;

// ---- What both have in common

TokenizerJson added_token(int64_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

struct Marker {
  std::string token;
  int64_t id;
};

TokenizerJson special_piece(const Marker& marker, int type) {
  return {{"SpecialToken", {{"id", marker.token}, {"type_id", type}}}};
}

TokenizerJson sequence_piece(const char* name, int type) {
  return {{"Sequence", {{"id", name}, {"type_id", type}}}};
}

// `begin` text `end`; for two texts, the second with its own `end` and of type `second_type`.
TokenizerJson template_processing(const std::vector<Marker>& begin, const std::vector<Marker>& end,
                                  int second_type) {
  TokenizerJson single = TokenizerJson::array(), special = TokenizerJson::object();
  for (const Marker& marker : begin) single.push_back(special_piece(marker, 0));
  single.push_back(sequence_piece("A", 0));
  for (const Marker& marker : end) single.push_back(special_piece(marker, 0));
  TokenizerJson pair = single;
  pair.push_back(sequence_piece("B", second_type));
  for (const Marker& marker : end) pair.push_back(special_piece(marker, second_type));
  for (const auto* markers : {&begin, &end})
    for (const Marker& marker : *markers)
      special[marker.token] = {
          {"id", marker.token}, {"ids", {marker.id}}, {"tokens", {marker.token}}};
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

std::string written(const TokenizerJson& normalizer, const TokenizerJson& pre_tokenizer,
                    const TokenizerJson& post_processor, const TokenizerJson& decoder,
                    const TokenizerJson& model, const TokenizerJson& added,
                    const std::string& origin) {
  const TokenizerJson file = {{"version", "1.0"},
                              {"truncation", nullptr},
                              {"padding", nullptr},
                              {"added_tokens", added},
                              {"normalizer", normalizer},
                              {"pre_tokenizer", pre_tokenizer},
                              {"post_processor", post_processor},
                              {"decoder", decoder},
                              {"model", model}};
  try {
    return file.dump();
  } catch (const TokenizerJson::exception&) {
    throw IoError("{}: a token of the vocabulary is not UTF-8", origin);
  }
}

// ---- vocab.txt and tokenizer_config.json

const std::string& content_of(const JsonNode& token) {
  return token.json().is_object() ? token["content"].text() : token.text();
}

// The flags that `token` has; those of a special token where it is only a text.
TokenizerJson added_token(int64_t id, const JsonNode& token) {
  TokenizerJson result = added_token(id, content_of(token));
  if (token.json().is_object())
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"})
      if (token.has(flag)) result[flag] = token[flag].flag();
  return result;
}

// Classes of transformers that are BERT's tokenizer.
bool is_bert_class(std::string name) {
  if (name.ends_with("Fast")) name.resize(name.size() - 4);
  constexpr const char* kClasses[] = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
                                      "MobileBertTokenizer", "RetriBertTokenizer"};
  return std::any_of(std::begin(kClasses), std::end(kClasses),
                     [&](const char* c) { return name == c; });
}

// ---- SentencePiece

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const size_t count = std::min(bytes.size() - at, size_t{3});
    uint32_t group = 0;
    for (size_t i = 0; i < 3; ++i)
      group = group << 8 | (i < count ? static_cast<unsigned char>(bytes[at + i]) : 0u);
    for (size_t i = 0; i < 4; ++i)
      text.push_back(i <= count ? kDigits[group >> (18 - 6 * i) & 63] : '=');
  }
  return text;
}

TokenizerJson replace(const char* pattern, const char* content) {
  return {{"type", "Replace"}, {"pattern", {{"Regex", pattern}}}, {"content", content}};
}

// SentencePiece maps the longest match of its table at every place. Hugging Face looks up whole
// grapheme clusters of less than 6 bytes, takes the shortest match and drops what lies behind it in
// the cluster; other clusters it maps character by character. So each mark is parted from what it
// stands on by U+0001, which the table of nmt_nfkc removes, and NFC joins them again.
TokenizerJson normalizer_of(const SentencePieceModel& model) {
  TokenizerJson steps = TokenizerJson::array();
  const bool joins = model.rule.starts_with("nmt_nfkc");
  // Marks, and the other characters that extend a cluster.
  if (joins)
    steps.push_back(
        replace("(?<=.)(?=[\\p{M}\u200c\u200d\uff9e\uff9f\U0001f3fb-\U0001f3ff"
                "\U000e0020-\U000e007f])",
                "\x01"));
  if (!model.charsmap.empty())
    steps.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64(model.charsmap)}});
  if (joins) steps.push_back({{"type", "NFC"}});
  steps.push_back(replace("^ +| +$|(?<= ) +", ""));
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

}  // namespace

std::string wordpiece_tokenizer_json(std::string_view vocab_txt,
                                     std::string_view tokenizer_config_json,
                                     const std::string& origin) {
  const std::string config_name = origin + "/tokenizer_config.json";
  const TokenizerJson config_json = tokenizer_config_json.empty()
                                        ? TokenizerJson::object()
                                        : JsonNode::parse(tokenizer_config_json, config_name);
  const JsonNode config(config_json, config_name);
  if (config.has("tokenizer_class") && !is_bert_class(config["tokenizer_class"].text()))
    config["tokenizer_class"].refuse("it must be BertTokenizer, or one of the same kind");
  const auto flag = [&](const char* name) { return !config.has(name) || config[name].flag(); };

  TokenizerJson vocab = TokenizerJson::object();  // of two equal lines the later counts, as there
  for (int64_t id = 0; !vocab_txt.empty(); ++id) {
    const size_t end = vocab_txt.find('\n');
    std::string_view line = vocab_txt.substr(0, end);
    vocab_txt.remove_prefix(end == std::string_view::npos ? vocab_txt.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    vocab[std::string(line)] = id;
  }

  std::map<int64_t, TokenizerJson> added;  // by id
  if (config.has("added_tokens_decoder"))
    for (const auto& [id, token] : config["added_tokens_decoder"].object()) {
      const JsonNode node = config["added_tokens_decoder"][id.c_str()];
      if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos)
        node.malformed("has no number for its id");
      added[std::stoll(id)] = added_token(std::stoll(id), node);
    }
  const auto special = [&](const char* key, const char* otherwise) {
    Marker marker{config.has(key) ? content_of(config[key]) : otherwise, -1};
    for (const auto& [id, token] : added)
      if (token["content"] == marker.token) marker.id = id;
    if (marker.id >= 0) return marker;
    const auto known = vocab.find(marker.token);
    if (known == vocab.end())
      throw IoError("{}/vocab.txt lacks the {} '{}'", origin, key, marker.token);
    marker.id = known->get<int64_t>();
    added[marker.id] = config.has(key) ? added_token(marker.id, config[key])
                                       : added_token(marker.id, marker.token);
    return marker;
  };
  const Marker unknown = special("unk_token", "[UNK]"), end = special("sep_token", "[SEP]"),
               begin = special("cls_token", "[CLS]");
  special("pad_token", "[PAD]");
  special("mask_token", "[MASK]");
  TokenizerJson added_list = TokenizerJson::array();
  for (const auto& [id, token] : added) added_list.push_back(token);

  const TokenizerJson normalizer = {
      {"type", "BertNormalizer"},
      {"clean_text", true},
      {"handle_chinese_chars", flag("tokenize_chinese_chars")},
      {"strip_accents", config.has("strip_accents") ? TokenizerJson(config["strip_accents"].flag())
                                                    : TokenizerJson(nullptr)},
      {"lowercase", flag("do_lower_case")}};
  const TokenizerJson model = {{"type", "WordPiece"},
                               {"unk_token", unknown.token},
                               {"continuing_subword_prefix", "##"},
                               {"max_input_chars_per_word", 100},
                               {"vocab", std::move(vocab)}};
  return written(normalizer, {{"type", "BertPreTokenizer"}}, template_processing({begin}, {end}, 1),
                 {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}, model, added_list,
                 origin);
}

std::string sentencepiece_tokenizer_json(std::string_view bytes, const std::string& origin) {
  const SentencePieceModel model = read_sentencepiece_model(bytes, origin);
  const auto refuse = [&](const std::string& what) {
    throw UsageError("{} cannot be written as a tokenizer.json: {}", origin, what);
  };
  if (model.pieces.empty()) throw IoError("{} holds no pieces", origin);
  if (model.model_type != SentencePieceModel::kUnigram)
    refuse(fmt::format("its model_type is {}; only unigram (1) can", model.model_type));
  if (!model.dummy_prefix || !model.one_space || !model.escape_space || model.space_is_suffix)
    refuse(
        "add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces must be true and "
        "treat_whitespace_as_suffix false");

  TokenizerJson vocab = TokenizerJson::array(), added = TokenizerJson::array();
  TokenizerJson unknown;
  std::vector<Marker> begin, end;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePieceModel::Piece& piece = model.pieces[i];
    const auto id = static_cast<int64_t>(i);
    vocab.push_back({piece.text, double{piece.score}});
    if (piece.type == SentencePieceModel::kUnknown) unknown = id;
    if (piece.type == SentencePieceModel::kUnknown || piece.type == SentencePieceModel::kControl)
      added.push_back(added_token(id, piece.text));
    else if (piece.type != SentencePieceModel::kNormal && piece.type != SentencePieceModel::kByte)
      refuse(fmt::format("piece {} ('{}') is user-defined or unused", id, piece.text));
    if (piece.type == SentencePieceModel::kControl && piece.text == model.begin)
      begin = {{piece.text, id}};
    if (piece.type == SentencePieceModel::kControl && piece.text == model.end)
      end = {{piece.text, id}};
  }
  if (unknown.is_null()) throw IoError("{} has no unknown piece", origin);

  const TokenizerJson spaces = {{"type", "Metaspace"},
                                {"replacement", "\u2581"},
                                {"prepend_scheme", "always"},
                                {"split", false}};
  const TokenizerJson unigram = {{"type", "Unigram"},
                                 {"unk_id", unknown},
                                 {"vocab", std::move(vocab)},
                                 {"byte_fallback", model.byte_fallback}};
  return written(normalizer_of(model), spaces, template_processing(begin, end, 0), spaces, unigram,
                 added, origin);
}

}  // namespace amur
