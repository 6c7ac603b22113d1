#include "src/train/data/json_tokenizer.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "src/train/data/added_tokens.h"
#include "src/train/data/text_model.h"

namespace amur {
namespace {

// Texts whose words blanks part are normalised in parts of about this many bytes.
constexpr size_t kBlock = 4096;

// Of files of old, without a type, each kind has members of its own.
std::string model_type(const JsonNode& model) {
  if (model.has("type")) return model["type"].text();
  if (model.has("max_input_chars_per_word")) return "WordPiece";
  if (model.has("merges")) return "BPE";
  if (model.has("unk_id")) return "Unigram";
  return "";
}

ReadTextModel read_model(const JsonNode& root) {
  if (root.has("version") && root["version"].text() != "1.0")
    root["version"].refuse("it must be \"1.0\"");
  const JsonNode model = root["model"];
  const std::string type = model_type(model);
  if (type == "WordPiece") return read_wordpiece_model(root);
  if (type == "BPE") return read_bpe_model(root);
  if (type == "Unigram") return read_unigram_model(root);
  (model.has("type") ? model["type"] : model).refuse("the model must be WordPiece, BPE or Unigram");
}

// What all kinds have: added tokens and markers.
class FrameReader {
 public:
  FrameReader(const JsonNode& root, const ReadTextModel& read) : root_(root), read_(read) {
    if (read.vocab.empty()) root["model"]["vocab"].malformed("is empty");
    for (const auto& [token, id] : read.vocab) take_id(root["model"]["vocab"], token, id);
    added_tokens();
    post_processor();
    if (root_.has("truncation") && root_["truncation"].has("direction") &&
        root_["truncation"]["direction"].text() != "Right")
      root_["truncation"]["direction"].refuse("texts are cut at their ends, \"Right\"");
  }

  std::vector<AddedToken> added;
  std::vector<int32_t> begin, end;  // markers

 private:
  void take_id(const JsonNode& node, const std::string& token, int64_t id) {
    if (!ids_.insert(id).second)
      node.malformed(fmt::format("gives '{}' the id {} of another token", token, id));
  }

  void added_tokens() {
    if (!root_.has("added_tokens")) return;
    const JsonNode list = root_["added_tokens"];
    std::set<std::string> seen;
    // The reference gives a token its id in the vocabulary, or the next behind it, whatever the
    // file says; where the two differ, the file is not what its model was trained with.
    auto next = read_.size;
    for (size_t i = 0; i < list.list_size(); ++i) {
      const JsonNode node = list[i];
      AddedToken token;
      token.content = node["content"].text();
      token.single_word = node["single_word"].flag();
      token.lstrip = node["lstrip"].flag();
      token.rstrip = node["rstrip"].flag();
      token.normalized = node["normalized"].flag();
      token.special = node["special"].flag();
      if (token.content.empty() || !seen.insert(token.content).second)
        node["content"].malformed("is empty or that of another token");
      const auto known = read_.vocab.find(token.content);
      const int64_t id = known != read_.vocab.end() ? known->second : next++;
      if (node["id"].whole(0, kMostTokens - 1) != id)
        node["id"].malformed(fmt::format("is not {}, as the vocabulary has it", id));
      if (known == read_.vocab.end()) take_id(node, token.content, id);
      token.id = static_cast<int32_t>(id);
      added.push_back(std::move(token));
    }
  }

  int32_t known_id(const JsonNode& node) {
    const int64_t id = node.whole(0, kMostTokens - 1);
    if (!ids_.contains(id)) node.malformed(fmt::format("is {}, which is no token's", id));
    return static_cast<int32_t>(id);
  }

  void post_processor() {
    if (root_.has("post_processor")) post_processor(root_["post_processor"]);
  }

  void post_processor(const JsonNode& node) {
    const std::string& type = node["type"].text();
    if (type == "Sequence") {
      for (size_t i = 0; i < node["processors"].list_size(); ++i) {
        const JsonNode part = node["processors"][i];
        if (part["type"].text() == "Sequence") part["type"].refuse("it must be no sequence again");
        post_processor(part);
      }
      return;
    }
    if (type == "ByteLevel") return;  // offsets only
    if (!begin.empty() || !end.empty()) node["type"].refuse("markers come from one of them");
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      begin = {known_id(node["cls"][size_t{1}])};
      end = {known_id(node["sep"][size_t{1}])};
    } else if (type == "TemplateProcessing") {
      const JsonNode single = node["single"];
      bool before = true;
      for (size_t i = 0; i < single.list_size(); ++i) {
        const bool text = single[i].has("Sequence");
        const JsonNode piece = single[i][text ? "Sequence" : "SpecialToken"];
        if (piece["type_id"].whole(0, kMostTokens) != 0)
          piece["type_id"].refuse("every token of a text has the type 0");
        if (text) {
          if (piece["id"].text() != "A" || !before) piece.refuse("a text stands there once, as A");
          before = false;
          continue;
        }
        const JsonNode ids = node["special_tokens"][piece["id"].text().c_str()]["ids"];
        for (size_t k = 0; k < ids.list_size(); ++k)
          (before ? begin : end).push_back(known_id(ids[k]));
      }
      if (before) single.malformed("has no place for the text");
    } else {
      node["type"].refuse(
          "it must be TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel or a "
          "Sequence of them");
    }
  }

  const JsonNode& root_;
  const ReadTextModel& read_;
  std::set<int64_t> ids_;
};

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(std::string bytes, const JsonNode& root, ReadTextModel read, FrameReader frame)
      : bytes_(std::move(bytes)),
        model_(std::move(read.model)),
        begin_(std::move(frame.begin)),
        end_(std::move(frame.end)),
        raw_(patterns(frame.added, false, root)),
        normalized_(patterns(frame.added, true, root)) {
    for (const auto& [token, id] : read.vocab) name(static_cast<int32_t>(id), token, false);
    for (const AddedToken& token : frame.added) name(token.id, pattern_of(token), token.special);
    size_ = std::max(read.size, tokens_.rbegin()->first + int64_t{1});
    if (begin_.empty() && end_.empty() && model_->unknown_id() < 0)
      root.malformed("has neither markers nor an unknown token: an empty text would have no token");
  }

  TokenizerKind tokenizer_kind() const override { return model_->kind(); }
  int64_t vocab_size() const override { return size_; }
  const std::string& serialised() const override { return bytes_; }

  bool encode(std::string_view text, int64_t max_length, std::vector<int32_t>& ids) const override {
    const auto markers = static_cast<int64_t>(begin_.size() + end_.size());
    AMUR_CHECK(max_length > markers, "{} tokens leave no room for a text", max_length);
    ids.insert(ids.end(), begin_.begin(), begin_.end());
    const size_t before = ids.size();
    TokenOutput out(ids, static_cast<size_t>(max_length - markers));
    std::string normal;  // scratch
    for (const AddedTokenFinder::Part& part : raw_.split(text))
      if (!(part.id < 0 ? add_text(part.text, normal, out) : out.add(part.id))) break;
    if (ids.size() == before && markers == 0) ids.push_back(model_->unknown_id());
    ids.insert(ids.end(), end_.begin(), end_.end());
    return out.cut();
  }

  bool encode_sampled(std::string_view, int64_t, double, RandomKey,
                      std::vector<int32_t>&) const override {
    throw UsageError(
        "data.subword_sampling: a tokenizer of the kind {} has one segmentation only; set it to 0",
        kind());
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::vector<std::string> tokens;
    for (const int32_t id : ids) {
      AMUR_CHECK(id >= 0 && id < vocab_size(), "token {} of a vocabulary of {}", id, vocab_size());
      const auto found = tokens_.find(id);
      if (found != tokens_.end() && !found->second.special) tokens.push_back(found->second.text);
    }
    return model_->decode(tokens);
  }

 private:
  struct Token {
    std::string text;
    bool special;
  };

  void name(int32_t id, const std::string& text, bool special) {
    tokens_.insert_or_assign(id, Token{text, special});
  }

  std::string pattern_of(const AddedToken& token) const {
    if (!token.normalized) return token.content;
    std::string normal;
    model_->normalise(token.content, normal);
    return normal;
  }

  std::vector<AddedTokenFinder::Pattern> patterns(const std::vector<AddedToken>& added,
                                                  bool normalized, const JsonNode& root) const {
    std::vector<AddedTokenFinder::Pattern> result;
    std::set<std::string> seen;
    for (const AddedToken& token : added) {
      if (token.normalized != normalized) continue;
      std::string text = pattern_of(token);
      if (text.empty() || !seen.insert(text).second)
        root["added_tokens"].malformed(fmt::format(
            "has '{}', of which the normalizer leaves nothing of its own", token.content));
      result.push_back({std::move(text), token});
    }
    return result;
  }

  // False where there was no room for all of it.
  bool add_text(std::string_view text, std::string& normal, TokenOutput& out) const {
    while (!text.empty()) {
      // Tokens of the normalised text may stand across blanks.
      size_t size = normalized_.empty() && model_->blanks_part_words() ? kBlock : text.size();
      if (size < text.size()) size = text.find_first_of(" \t\n", size);
      const std::string_view block = text.substr(0, size);
      text.remove_prefix(block.size());
      normal.clear();
      model_->normalise(block, normal);
      for (const AddedTokenFinder::Part& part : normalized_.split(normal))
        if (!(part.id < 0 ? model_->encode(part.text, out) : out.add(part.id))) return false;
    }
    return true;
  }

  std::string bytes_;
  std::unique_ptr<TextModel> model_;
  std::vector<int32_t> begin_, end_;  // markers
  AddedTokenFinder raw_, normalized_;
  std::map<int32_t, Token> tokens_;
  int64_t size_ = 0;
};

}  // namespace

std::map<std::string, int64_t> read_token_ids(const JsonNode& vocab) {
  std::map<std::string, int64_t> ids;
  for (const auto& [token, id] : vocab.object()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(kMostTokens))
      vocab.malformed(fmt::format("gives '{}' no id below {}", token, kMostTokens));
    ids.emplace(token, id.get<int64_t>());
  }
  return ids;
}

std::unique_ptr<Tokenizer> make_json_tokenizer(std::string tokenizer_json,
                                               const std::string& origin) {
  const JsonNode::Json json = JsonNode::parse(tokenizer_json, origin);
  const JsonNode root(json, origin);
  ReadTextModel read = read_model(root);
  FrameReader frame(root, read);
  return std::make_unique<JsonTokenizer>(std::move(tokenizer_json), root, std::move(read),
                                         std::move(frame));
}

}  // namespace amur
