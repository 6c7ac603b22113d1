#include "src/train/data/wordpiece_tokenizer.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "src/core/hash.h"
#include "src/train/data/added_tokens.h"
#include "src/train/data/bert_text.h"
#include "src/train/data/json_node.h"

namespace amur {
namespace {

constexpr int64_t kMostIds = int64_t{1} << 24;
// Texts are normalised in parts of about this many bytes, cut at a blank.
constexpr size_t kBlock = 4096;

// The pieces of a vocabulary, to find the longest one with which a word begins.
class PieceTable {
 public:
  struct Piece {
    std::string text;
    int32_t id;
  };

  // `pieces` are different; the empty one is never found.
  explicit PieceTable(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {
    size_t slots = 16;
    while (slots < 2 * pieces_.size()) slots *= 2;
    slots_.resize(slots);
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const uint64_t hash = mix64(fnv1a(pieces_[i].text));
      size_t slot = hash & (slots - 1);
      while (slots_[slot].piece != kEmpty) slot = (slot + 1) & (slots - 1);
      slots_[slot] = {tag(hash), static_cast<uint32_t>(i)};
      longest_ = std::max(longest_, pieces_[i].text.size());
    }
  }

  // Null where no piece fits. `hashes` is scratch.
  const Piece* longest_prefix(std::string_view word, std::vector<uint64_t>& hashes) const {
    const size_t longest = std::min(longest_, word.size());
    hashes.resize(longest + 1);
    hashes[0] = fnv1a({});
    for (size_t i = 0; i < longest; ++i) hashes[i + 1] = fnv1a(word.substr(i, 1), hashes[i]);
    for (size_t size = longest; size > 0; --size)
      if (const Piece* piece = find(word.substr(0, size), mix64(hashes[size]))) return piece;
    return nullptr;
  }

 private:
  static constexpr uint32_t kEmpty = std::numeric_limits<uint32_t>::max();
  struct Slot {
    uint32_t tag = 0, piece = kEmpty;
  };
  static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  const Piece* find(std::string_view text, uint64_t hash) const {
    for (size_t slot = hash & (slots_.size() - 1); slots_[slot].piece != kEmpty;
         slot = (slot + 1) & (slots_.size() - 1)) {
      const Piece& piece = pieces_[slots_[slot].piece];
      if (slots_[slot].tag == tag(hash) && piece.text == text) return &piece;
    }
    return nullptr;
  }

  std::vector<Piece> pieces_;
  std::vector<Slot> slots_;
  size_t longest_ = 0;
};

// Tokens of one text: between the markers, as many as there is room for.
class Output {
 public:
  Output(std::vector<int32_t>& ids, size_t room) : ids_(ids), end_(ids.size() + room) {}

  // False where there is no room for it.
  bool add(int32_t id) {
    cut_ = ids_.size() == end_;
    if (!cut_) ids_.push_back(id);
    return !cut_;
  }
  bool cut() const { return cut_; }

 private:
  std::vector<int32_t>& ids_;
  size_t end_;
  bool cut_ = false;
};

// What a tokenizer.json says.
struct WordPieceFile {
  std::map<std::string, int64_t> vocab;
  std::string unknown, prefix;  // [UNK] and ##
  int32_t unknown_id = 0;
  int64_t longest_word = 0;  // in characters; longer ones are unknown
  std::optional<BertNormalizer::Options> normalizer;
  std::vector<AddedToken> added;
  std::vector<int32_t> begin, end;  // markers
  bool has_decoder = false, clean_up = false;
  std::string decoder_prefix;
};

// Reads one, refusing what is not supported.
class WordPieceReader {
 public:
  explicit WordPieceReader(const JsonNode& root) : root_(root) {}

  WordPieceFile read() {
    if (root_.has("version") && root_["version"].text() != "1.0")
      root_["version"].refuse("it must be \"1.0\"");
    model();
    added_tokens();
    normalizer();
    pre_tokenizer();
    post_processor();
    decoder();
    if (root_.has("truncation") && root_["truncation"].has("direction") &&
        root_["truncation"]["direction"].text() != "Right")
      root_["truncation"]["direction"].refuse("texts are cut at their ends, \"Right\"");
    return std::move(file_);
  }

 private:
  static std::string type_of(const JsonNode& node) { return node["type"].text(); }

  void model() {
    const JsonNode model = root_["model"];
    // Files of old have no type; only WordPiece has this one.
    if (model.has("type") ? type_of(model) != "WordPiece" : !model.has("max_input_chars_per_word"))
      (model.has("type") ? model["type"] : model)
          .refuse("the model must be WordPiece; SentencePiece models are read from their .model");
    file_.unknown = model["unk_token"].text();
    file_.prefix = model["continuing_subword_prefix"].text();
    file_.longest_word =
        model["max_input_chars_per_word"].whole(std::numeric_limits<int64_t>::max());
    const JsonNode vocab = model["vocab"];
    for (const auto& [token, id] : vocab.object()) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(kMostIds))
        vocab.malformed(fmt::format("gives '{}' no id below {}", token, kMostIds));
      take_id(vocab, token, id.get<int64_t>());
      file_.vocab.emplace(token, id.get<int64_t>());
    }
    const auto unknown = file_.vocab.find(file_.unknown);
    if (unknown == file_.vocab.end())
      vocab.malformed(fmt::format("lacks the unk_token '{}'", file_.unknown));
    file_.unknown_id = static_cast<int32_t>(unknown->second);
  }

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
    auto next = static_cast<int64_t>(file_.vocab.size());
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
      const auto known = file_.vocab.find(token.content);
      const int64_t id = known != file_.vocab.end() ? known->second : next++;
      if (node["id"].whole(kMostIds - 1) != id)
        node["id"].malformed(fmt::format("is not {}, as the vocabulary has it", id));
      if (known == file_.vocab.end()) take_id(node, token.content, id);
      token.id = static_cast<int32_t>(id);
      file_.added.push_back(std::move(token));
    }
  }

  void normalizer() {
    if (!root_.has("normalizer")) return;
    const JsonNode node = root_["normalizer"];
    if (type_of(node) != "BertNormalizer") node["type"].refuse("it must be BertNormalizer");
    BertNormalizer::Options options;
    options.clean_text = node["clean_text"].flag();
    options.handle_chinese_chars = node["handle_chinese_chars"].flag();
    options.lowercase = node["lowercase"].flag();
    options.strip_accents =
        node.has("strip_accents") ? node["strip_accents"].flag() : options.lowercase;
    file_.normalizer = options;
  }

  void pre_tokenizer() {
    const JsonNode node = root_["pre_tokenizer"];
    if (node.is_null()) node.refuse("it must be BertPreTokenizer");
    if (type_of(node) != "BertPreTokenizer") node["type"].refuse("it must be BertPreTokenizer");
  }

  int32_t known_id(const JsonNode& node) {
    const int64_t id = node.whole(kMostIds - 1);
    if (!ids_.contains(id)) node.malformed(fmt::format("is {}, which is no token's", id));
    return static_cast<int32_t>(id);
  }

  void post_processor() {
    if (!root_.has("post_processor")) return;
    const JsonNode node = root_["post_processor"];
    const std::string type = type_of(node);
    if (type == "BertProcessing") {
      file_.begin = {known_id(node["cls"][size_t{1}])};
      file_.end = {known_id(node["sep"][size_t{1}])};
    } else if (type == "TemplateProcessing") {
      const JsonNode single = node["single"];
      bool before = true;
      for (size_t i = 0; i < single.list_size(); ++i) {
        const bool text = single[i].has("Sequence");
        const JsonNode piece = single[i][text ? "Sequence" : "SpecialToken"];
        if (piece["type_id"].whole(kMostIds) != 0)
          piece["type_id"].refuse("every token of a text has the type 0");
        if (text) {
          if (piece["id"].text() != "A" || !before) piece.refuse("a text stands there once, as A");
          before = false;
          continue;
        }
        const JsonNode ids = node["special_tokens"][piece["id"].text().c_str()]["ids"];
        for (size_t k = 0; k < ids.list_size(); ++k)
          (before ? file_.begin : file_.end).push_back(known_id(ids[k]));
      }
      if (before) single.malformed("has no place for the text");
    } else {
      node["type"].refuse("it must be TemplateProcessing or BertProcessing");
    }
  }

  void decoder() {
    if (!root_.has("decoder")) return;
    const JsonNode node = root_["decoder"];
    if (type_of(node) != "WordPiece") node["type"].refuse("it must be WordPiece");
    file_.has_decoder = true;
    file_.decoder_prefix = node["prefix"].text();
    file_.clean_up = node["cleanup"].flag();
  }

  JsonNode root_;
  WordPieceFile file_;
  std::set<int64_t> ids_;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

// tokenizers/src/decoders/wordpiece.rs
void clean_up(std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) replace_all(text, from, to);
}

std::vector<PieceTable::Piece> pieces_of(const std::map<std::string, int64_t>& vocab,
                                         const std::string& prefix) {
  std::vector<PieceTable::Piece> pieces;
  for (const auto& [token, id] : vocab)
    if (token.starts_with(prefix))
      pieces.push_back({token.substr(prefix.size()), static_cast<int32_t>(id)});
  return pieces;
}

class WordPieceTokenizer final : public Tokenizer {
 public:
  WordPieceTokenizer(std::string bytes, WordPieceFile file, const JsonNode& root)
      : bytes_(std::move(bytes)),
        file_(std::move(file)),
        normalizer_(file_.normalizer.value_or(BertNormalizer::Options{false, false, false, false})),
        first_(pieces_of(file_.vocab, "")),
        continuing_(pieces_of(file_.vocab, file_.prefix)),
        raw_(patterns(false, root)),
        normalized_(patterns(true, root)) {
    for (const auto& [token, id] : file_.vocab) name(static_cast<int32_t>(id), token, false);
    for (const AddedToken& token : file_.added) name(token.id, pattern_of(token), token.special);
    size_ = tokens_.rbegin()->first + 1;
    file_.vocab.clear();
  }

  const char* kind() const override { return name_of(TokenizerKind::wordpiece); }
  int64_t vocab_size() const override { return size_; }
  const std::string& serialised() const override { return bytes_; }

  bool encode(std::string_view text, int64_t max_length, std::vector<int32_t>& ids) const override {
    const auto markers = static_cast<int64_t>(file_.begin.size() + file_.end.size());
    AMUR_CHECK(max_length > markers, "{} tokens leave no room for a text", max_length);
    ids.insert(ids.end(), file_.begin.begin(), file_.begin.end());
    const size_t before = ids.size();
    Output out(ids, static_cast<size_t>(max_length - markers));
    Scratch scratch;
    for (const AddedTokenFinder::Part& part : raw_.split(text))
      if (!(part.id < 0 ? add_text(part.text, scratch, out) : out.add(part.id))) break;
    if (ids.size() == before && markers == 0) ids.push_back(file_.unknown_id);
    ids.insert(ids.end(), file_.end.begin(), file_.end.end());
    return out.cut();
  }

  bool encode_sampled(std::string_view, int64_t, double, RandomKey,
                      std::vector<int32_t>&) const override {
    throw UsageError("data.subword_sampling: WordPiece has one segmentation only; set it to 0");
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    bool first = true;
    for (const int32_t id : ids) {
      AMUR_CHECK(id >= 0 && id < vocab_size(), "token {} of a vocabulary of {}", id, vocab_size());
      const auto found = tokens_.find(id);
      if (found == tokens_.end() || found->second.special) continue;
      std::string token = found->second.text;
      if (!first && file_.has_decoder && token.starts_with(file_.decoder_prefix))
        token.erase(0, file_.decoder_prefix.size());
      else if (!first)
        token.insert(0, 1, ' ');
      if (file_.clean_up) clean_up(token);
      text += token;
      first = false;
    }
    return text;
  }

 private:
  struct Token {
    std::string text;
    bool special;
  };
  struct Scratch {
    std::string normal;
    std::vector<uint64_t> hashes;
    std::vector<int32_t> word;
  };

  void name(int32_t id, const std::string& text, bool special) {
    tokens_.insert_or_assign(id, Token{text, special});
  }

  std::string pattern_of(const AddedToken& token) const {
    if (!token.normalized) return token.content;
    std::string normal;
    normalizer_.append(token.content, normal);
    return normal;
  }

  std::vector<AddedTokenFinder::Pattern> patterns(bool normalized, const JsonNode& root) const {
    std::vector<AddedTokenFinder::Pattern> result;
    std::set<std::string> seen;
    for (const AddedToken& token : file_.added) {
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
  bool add_text(std::string_view text, Scratch& scratch, Output& out) const {
    while (!text.empty()) {
      // Tokens of the normalised text may stand across blanks.
      size_t size = normalized_.empty() ? kBlock : text.size();
      if (size < text.size()) size = text.find_first_of(" \t\n", size);
      const std::string_view block = text.substr(0, size);
      text.remove_prefix(block.size());
      scratch.normal.clear();
      normalizer_.append(block, scratch.normal);
      if (normalized_.empty()) {
        if (!add_words(scratch.normal, scratch, out)) return false;
        continue;
      }
      for (const AddedTokenFinder::Part& part : normalized_.split(scratch.normal))
        if (!(part.id < 0 ? add_words(part.text, scratch, out) : out.add(part.id))) return false;
    }
    return true;
  }

  bool add_words(std::string_view normal, Scratch& scratch, Output& out) const {
    return for_each_bert_word(normal,
                              [&](std::string_view word) { return add_word(word, scratch, out); });
  }

  // Greedy from the left; a word that cannot be spelt to its end is one unknown token.
  bool add_word(std::string_view word, Scratch& scratch, Output& out) const {
    scratch.word.clear();
    bool known = is_short(word);
    for (const PieceTable* table = &first_; known && !word.empty(); table = &continuing_) {
      const PieceTable::Piece* piece = table->longest_prefix(word, scratch.hashes);
      known = piece != nullptr;
      if (!known) break;
      scratch.word.push_back(piece->id);
      word.remove_prefix(piece->text.size());
    }
    if (!known) return out.add(file_.unknown_id);
    return std::all_of(scratch.word.begin(), scratch.word.end(),
                       [&](int32_t id) { return out.add(id); });
  }

  bool is_short(std::string_view word) const {
    const auto most = static_cast<uint64_t>(file_.longest_word);
    if (word.size() <= most) return true;
    const auto characters = std::count_if(word.begin(), word.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    });
    return static_cast<uint64_t>(characters) <= most;
  }

  std::string bytes_;
  WordPieceFile file_;
  BertNormalizer normalizer_;
  PieceTable first_, continuing_;
  AddedTokenFinder raw_, normalized_;
  std::map<int32_t, Token> tokens_;
  int64_t size_ = 0;
};

}  // namespace

std::unique_ptr<Tokenizer> make_wordpiece_tokenizer(std::string tokenizer_json,
                                                    const std::string& origin) {
  const JsonNode::Json json = JsonNode::parse(tokenizer_json, origin);
  const JsonNode root(json, origin);
  WordPieceFile file = WordPieceReader(root).read();
  return std::make_unique<WordPieceTokenizer>(std::move(tokenizer_json), std::move(file), root);
}

}  // namespace amur
