#include "src/train/data/tokenizer_json.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iterator>
#include <map>
#include <vector>

#include "src/train/data/precompiled_normalizer.h"
#include "src/train/data/sentencepiece_model.h"
#include "src/train/json_reader.h"

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

// Characters of the private use area that stand for the markers in the static form.
constexpr const char* kMarkerCharacters[] = {"\uE000", "\uE001", "\uE002", "\uE003"};
constexpr const char* kSpaceMark = "\u2581";

// What a file written here may have been written from.
SentencePieceModel model_of(const TokenizerJson& json) {
  SentencePieceModel model;
  const TokenizerJson& unigram = json.at("model");
  model.byte_fallback = unigram.at("byte_fallback").get<bool>();
  constexpr const char* kUsualMarkers[] = {"<s>", "</s>"};
  for (const TokenizerJson& entry : unigram.at("vocab")) {
    SentencePieceModel::Piece piece;
    piece.text = entry.at(0).get<std::string>();
    piece.score = static_cast<float>(entry.at(1).get<double>());
    if (model.byte_fallback && piece.text.size() == 6 && piece.text.starts_with("<0x"))
      piece.type = SentencePieceModel::kByte;
    for (size_t i = 0; i < std::size(kUsualMarkers); ++i)
      if (piece.text == kMarkerCharacters[i] && json.at("truncation").is_object()) {
        piece.text = kUsualMarkers[i];
        piece.type = SentencePieceModel::kControl;
      }
    model.pieces.push_back(std::move(piece));
  }
  for (const TokenizerJson& token : json.at("added_tokens"))
    model.pieces.at(token.at("id").get<size_t>()).type = SentencePieceModel::kControl;
  model.pieces.at(unigram.at("unk_id").get<size_t>()).type = SentencePieceModel::kUnknown;
  if (json.at("post_processor").is_object()) {
    bool before = true;
    for (const TokenizerJson& item : json["post_processor"].at("single"))
      if (item.contains("Sequence"))
        before = false;
      else
        (before ? model.begin : model.end) = item.at("SpecialToken").at("id").get<std::string>();
  }
  for (const TokenizerJson& step : json.at("normalizer").at("normalizers")) {
    if (step.at("type") == "Precompiled")
      model.charsmap =
          decode_base64(step.at("precompiled_charsmap").get<std::string>(), "the table");
    if (step.at("type") == "NFC") model.rule = "nmt_nfkc";
  }
  return model;
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

std::string xlm_roberta_tokenizer_json(std::string_view bytes, const std::string& origin) {
  constexpr size_t kSpecial = 3;  // <unk>, <s>, </s> in the model
  const SentencePieceModel model = read_sentencepiece_model(bytes, origin);
  if (model.pieces.size() < kSpecial)
    throw IoError("{} holds {} pieces", origin, model.pieces.size());
  if (model.model_type != SentencePieceModel::kUnigram)
    throw UsageError("{}: its model_type is {}; it must be unigram (1)", origin, model.model_type);
  TokenizerJson vocab = TokenizerJson::array(), added = TokenizerJson::array();
  for (const char* token : {"<s>", "<pad>", "</s>", "<unk>"}) {
    added.push_back(added_token(static_cast<int64_t>(vocab.size()), token));
    vocab.push_back({token, 0.0});
  }
  for (size_t i = kSpecial; i < model.pieces.size(); ++i)
    vocab.push_back({model.pieces[i].text, double{model.pieces[i].score}});
  TokenizerJson mask = added_token(static_cast<int64_t>(vocab.size()), "<mask>");
  mask["lstrip"] = true;
  added.push_back(mask);
  vocab.push_back({"<mask>", 0.0});

  const TokenizerJson normalizer =
      model.charsmap.empty() ? TokenizerJson(nullptr)
                             : TokenizerJson{{"type", "Precompiled"},
                                             {"precompiled_charsmap", base64(model.charsmap)}};
  const TokenizerJson spaces = {{"type", "Metaspace"},
                                {"replacement", "\u2581"},
                                {"prepend_scheme", "always"},
                                {"split", true}};
  const TokenizerJson words = {{"type", "Sequence"},
                               {"pretokenizers", {{{"type", "WhitespaceSplit"}}, spaces}}};
  const TokenizerJson unigram = {
      {"type", "Unigram"}, {"unk_id", 3}, {"vocab", std::move(vocab)}, {"byte_fallback", false}};
  const Marker begin{"<s>", 0}, end{"</s>", 2};
  return written(normalizer, words, template_processing({begin}, {end}, 0), spaces, unigram, added,
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

std::string static_tokenizer_json(std::string_view model, int64_t max_length,
                                  const std::string& origin) {
  TokenizerJson json = TokenizerJson::parse(sentencepiece_tokenizer_json(model, origin));
  TokenizerJson& vocab = json["model"]["vocab"];
  TokenizerJson& added = json["added_tokens"];
  std::string markers;
  size_t count = 0;
  const TokenizerJson& processor = json["post_processor"];
  for (const TokenizerJson& item : processor.at("single")) {
    const auto special = item.find("SpecialToken");
    if (special == item.end()) continue;
    const TokenizerJson& entry =
        processor.at("special_tokens").at(special->at("id").get<std::string>());
    const TokenizerJson& id = entry.at("ids").at(0);
    AMUR_CHECK(count < std::size(kMarkerCharacters), "{} markers", count + 1);
    vocab.at(id.get<size_t>()).at(0) = kMarkerCharacters[count];
    markers += kMarkerCharacters[count++];
    for (size_t i = added.size(); i-- > 0;)
      if (added[i].at("id") == id) added.erase(i);
  }
  const TokenizerJson spaces = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
  TokenizerJson& steps = json["normalizer"]["normalizers"];
  steps.push_back(spaces);
  steps.push_back(replace(fmt::format("\\A(?!{})", kSpaceMark).c_str(), kSpaceMark));
  steps.push_back(replace("\\A", markers.c_str()));
  for (const char* key : {"pre_tokenizer", "post_processor", "padding"}) json[key] = nullptr;
  json["truncation"] = {{"direction", "Right"},
                        {"max_length", max_length},
                        {"strategy", "LongestFirst"},
                        {"stride", 0}};
  return json.dump();
}

std::optional<std::string> sentencepiece_model_of(std::string_view tokenizer_json,
                                                  const std::string& origin) {
  // As both functions begin; other programs sort their members otherwise.
  if (!tokenizer_json.starts_with("{\"added_tokens\":[")) return std::nullopt;
  try {
    const TokenizerJson json = JsonNode::parse(tokenizer_json, origin);
    std::optional<int64_t> max_length;  // of the static form
    if (json.at("truncation").is_object())
      max_length = json["truncation"].at("max_length").get<int64_t>();
    const std::string model = write_sentencepiece_model(model_of(json));
    const std::string again = max_length ? static_tokenizer_json(model, *max_length, origin)
                                         : sentencepiece_tokenizer_json(model, origin);
    if (again == tokenizer_json) return model;
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): it is another file
  }
  return std::nullopt;
}

}  // namespace amur
