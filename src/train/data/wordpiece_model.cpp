// WordPiece as BERT uses it: BertNormalizer, BertPreTokenizer and the longest piece from the left.
#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "src/core/hash.h"
#include "src/train/data/bert_text.h"
#include "src/train/data/text_model.h"

namespace amur {
namespace {

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

// What the file says.
struct WordPieceOptions {
  std::string prefix;  // ##
  int32_t unknown_id = 0;
  int64_t longest_word = 0;  // in characters; longer ones are unknown
  std::optional<BertNormalizer::Options> normalizer;
  bool has_decoder = false, clean_up = false;
  std::string decoder_prefix;
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

class WordPieceModel final : public TextModel {
 public:
  WordPieceModel(WordPieceOptions options, const std::map<std::string, int64_t>& vocab)
      : options_(std::move(options)),
        normalizer_(
            options_.normalizer.value_or(BertNormalizer::Options{false, false, false, false})),
        first_(pieces_of(vocab, "")),
        continuing_(pieces_of(vocab, options_.prefix)) {}

  TokenizerKind kind() const override { return TokenizerKind::wordpiece; }
  int32_t unknown_id() const override { return options_.unknown_id; }
  bool blanks_part_words() const override { return true; }
  void normalise(std::string_view text, std::string& normal) const override {
    normalizer_.append(text, normal);
  }

  bool encode(std::string_view normal, TokenOutput& out) const override {
    Scratch scratch;
    return for_each_bert_word(normal,
                              [&](std::string_view word) { return add_word(word, scratch, out); });
  }

  std::string decode(const std::vector<std::string>& tokens) const override {
    std::string text;
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string token = tokens[i];
      if (i > 0 && options_.has_decoder && token.starts_with(options_.decoder_prefix))
        token.erase(0, options_.decoder_prefix.size());
      else if (i > 0)
        token.insert(0, 1, ' ');
      if (options_.clean_up) clean_up(token);
      text += token;
    }
    return text;
  }

 private:
  struct Scratch {
    std::vector<uint64_t> hashes;
    std::vector<int32_t> word;
  };

  // Greedy from the left; a word that cannot be spelt to its end is one unknown token.
  bool add_word(std::string_view word, Scratch& scratch, TokenOutput& out) const {
    scratch.word.clear();
    bool known = is_short(word);
    for (const PieceTable* table = &first_; known && !word.empty(); table = &continuing_) {
      const PieceTable::Piece* piece = table->longest_prefix(word, scratch.hashes);
      known = piece != nullptr;
      if (!known) break;
      scratch.word.push_back(piece->id);
      word.remove_prefix(piece->text.size());
    }
    if (!known) return out.add(options_.unknown_id);
    return std::all_of(scratch.word.begin(), scratch.word.end(),
                       [&](int32_t id) { return out.add(id); });
  }

  bool is_short(std::string_view word) const {
    const auto most = static_cast<uint64_t>(options_.longest_word);
    if (word.size() <= most) return true;
    const auto characters = std::count_if(word.begin(), word.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    });
    return static_cast<uint64_t>(characters) <= most;
  }

  WordPieceOptions options_;
  BertNormalizer normalizer_;
  PieceTable first_, continuing_;
};

}  // namespace

ReadTextModel read_wordpiece_model(const JsonNode& root) {
  ReadTextModel read;
  WordPieceOptions options;
  const JsonNode model = root["model"];
  const std::string& unknown = model["unk_token"].text();
  options.prefix = model["continuing_subword_prefix"].text();
  options.longest_word =
      model["max_input_chars_per_word"].whole(0, std::numeric_limits<int64_t>::max());
  read.vocab = read_token_ids(model["vocab"]);
  read.size = static_cast<int64_t>(read.vocab.size());
  const auto known = read.vocab.find(unknown);
  if (known == read.vocab.end())
    model["vocab"].malformed(fmt::format("lacks the unk_token '{}'", unknown));
  options.unknown_id = static_cast<int32_t>(known->second);

  if (root.has("normalizer")) {
    const JsonNode node = root["normalizer"];
    if (node["type"].text() != "BertNormalizer") node["type"].refuse("it must be BertNormalizer");
    BertNormalizer::Options normalizer;
    normalizer.clean_text = node["clean_text"].flag();
    normalizer.handle_chinese_chars = node["handle_chinese_chars"].flag();
    normalizer.lowercase = node["lowercase"].flag();
    normalizer.strip_accents =
        node.has("strip_accents") ? node["strip_accents"].flag() : normalizer.lowercase;
    options.normalizer = normalizer;
  }
  const JsonNode words = root["pre_tokenizer"];
  if (words.is_null()) words.refuse("it must be BertPreTokenizer");
  if (words["type"].text() != "BertPreTokenizer")
    words["type"].refuse("it must be BertPreTokenizer");
  if (root.has("decoder")) {
    const JsonNode node = root["decoder"];
    if (node["type"].text() != "WordPiece") node["type"].refuse("it must be WordPiece");
    options.has_decoder = true;
    options.decoder_prefix = node["prefix"].text();
    options.clean_up = node["cleanup"].flag();
  }
  read.model = std::make_unique<WordPieceModel>(std::move(options), read.vocab);
  return read;
}

}  // namespace amur
