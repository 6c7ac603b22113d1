// Byte-level BPE as GPT-2, RoBERTa and ModernBERT use it: words by GPT-2's regular expression,
// their bytes as symbols, and the merge of lowest rank first (tokenizers 0.23,
// src/pre_tokenizers/byte_level.rs and src/models/bpe/).
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <array>
#include <functional>
#include <limits>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "src/core/error.h"
#include "src/train/data/normal_forms.h"
#include "src/train/data/text_model.h"
#include "src/train/data/utf8.h"

namespace amur {
namespace {

// ---- Characters

enum class CharacterClass : uint8_t { other, letter, number, space };

// What Unicode 16.0, which the reference's regular expressions have, knows and 15.0 does not.
struct NewerRange {
  char32_t first, last;
  CharacterClass kind;
};
constexpr auto kLetter = CharacterClass::letter, kNumber = CharacterClass::number;
constexpr NewerRange kNewerCharacters[] = {
    {0x1c89, 0x1c8a, kLetter},   {0xa7cb, 0xa7cd, kLetter},   {0xa7da, 0xa7dc, kLetter},
    {0x105c0, 0x105f3, kLetter}, {0x10d40, 0x10d49, kNumber}, {0x10d4a, 0x10d65, kLetter},
    {0x10d6f, 0x10d85, kLetter}, {0x10ec2, 0x10ec4, kLetter}, {0x11380, 0x11389, kLetter},
    {0x1138b, 0x1138b, kLetter}, {0x1138e, 0x1138e, kLetter}, {0x11390, 0x113b5, kLetter},
    {0x113b7, 0x113b7, kLetter}, {0x113d1, 0x113d1, kLetter}, {0x113d3, 0x113d3, kLetter},
    {0x116d0, 0x116e3, kNumber}, {0x11bc0, 0x11be0, kLetter}, {0x11bf0, 0x11bf9, kNumber},
    {0x13460, 0x143fa, kLetter}, {0x16100, 0x1611d, kLetter}, {0x16130, 0x16139, kNumber},
    {0x16d40, 0x16d6c, kLetter}, {0x16d70, 0x16d79, kNumber}, {0x18cff, 0x18cff, kLetter},
    {0x1ccf0, 0x1ccf9, kNumber}, {0x1e5d0, 0x1e5ed, kLetter}, {0x1e5f0, 0x1e5f0, kLetter},
    {0x1e5f1, 0x1e5fa, kNumber}, {0x2ebf0, 0x2ee5d, kLetter},
};

CharacterClass class_of(char32_t c) {
  constexpr uint8_t kIcuVersion = 15;  // of what is asked of ICU, whichever it is
  const auto code = static_cast<UChar32>(c);
  UVersionInfo age;
  u_charAge(code, age);
  if (age[0] > kIcuVersion || age[0] == 0 || (age[0] == kIcuVersion && age[1] > 0)) {
    for (const NewerRange& range : kNewerCharacters)
      if (c >= range.first && c <= range.last) return range.kind;
    return CharacterClass::other;
  }
  if (is_white_space(c)) return CharacterClass::space;
  const uint32_t category = U_GET_GC_MASK(code);
  if (category & U_GC_L_MASK) return CharacterClass::letter;
  if (category & U_GC_N_MASK) return CharacterClass::number;
  return CharacterClass::other;
}

CharacterClass cached_class_of(char32_t c) {
  constexpr size_t kCached = 0x800;
  static const auto cache = [] {
    std::array<CharacterClass, kCached> classes{};
    for (size_t i = 0; i < kCached; ++i) classes[i] = class_of(static_cast<char32_t>(i));
    return classes;
  }();
  return c < kCached ? cache[c] : class_of(c);
}

// ---- Words

// The end of the word that begins at `at`, by
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t word_end(std::string_view text, size_t at) {
  if (text[at] == '\'')
    for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
      if (text.substr(at).starts_with(suffix)) return at + suffix.size();
  size_t behind = at;
  CharacterClass kind = cached_class_of(next_character(text, behind));
  if (text[at] == ' ' && behind < text.size()) {
    size_t next = behind;
    const CharacterClass after = cached_class_of(next_character(text, next));
    if (after != CharacterClass::space) {
      kind = after;
      behind = next;
    }
  }
  size_t last = at;  // where the last character begins
  size_t count = 1;
  while (behind < text.size()) {
    size_t next = behind;
    if (cached_class_of(next_character(text, next)) != kind) break;
    last = behind;
    behind = next;
    ++count;
  }
  // Of several blanks the last belongs to what follows.
  if (kind == CharacterClass::space && behind < text.size() && count > 1) return last;
  return behind;
}

// ---- Merges

// The 256 characters that stand for bytes in the file, as GPT-2 chose them.
std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae);
    characters[byte] = printable ? byte : next++;
  }
  return characters;
}

struct BpeOptions {
  bool nfc = false, prefix_space = false, fuse_unknown = false, whole_words = false;
  int32_t unknown_id = -1;
  std::array<int32_t, 256> byte_ids{};  // -1: the vocabulary has no such byte
};

class BpeModel final : public TextModel {
 public:
  struct Merge {
    int32_t rank, id;
  };
  using Merges = std::unordered_map<uint64_t, Merge>;
  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }

  BpeModel(const BpeOptions& options, Merges merges, std::map<std::string, int64_t> words)
      : options_(options), merges_(std::move(merges)), words_(std::move(words)) {
    const auto characters = byte_characters();
    for (size_t byte = 0; byte < characters.size(); ++byte)
      bytes_.emplace(characters[byte], static_cast<char>(byte));
  }

  TokenizerKind kind() const override { return TokenizerKind::bpe; }
  int32_t unknown_id() const override { return options_.unknown_id; }

  void normalise(std::string_view text, std::string& normal) const override {
    const std::string valid = valid_utf8(text);
    if (!options_.nfc) {
      normal += valid;
      return;
    }
    UErrorCode status = U_ZERO_ERROR;
    const icu::UnicodeString wide = icu::UnicodeString::fromUTF8(valid);
    const icu::UnicodeString composed = composition().normalize(wide, status);
    if (U_FAILURE(status)) throw IoError("text cannot be normalised: {}", u_errorName(status));
    composed.toUTF8String(normal);
  }

  bool encode(std::string_view normal, TokenOutput& out) const override {
    std::string prefixed;
    if (options_.prefix_space && !normal.empty() && normal[0] != ' ') {
      prefixed = ' ';
      prefixed += normal;
      normal = prefixed;
    }
    Word word;
    for (size_t at = 0; at < normal.size();) {
      const size_t end = word_end(normal, at);
      if (!add_word(normal.substr(at, end - at), word, out)) return false;
      at = end;
    }
    return true;
  }

  std::string decode(const std::vector<std::string>& tokens) const override {
    std::string text;
    for (const std::string& token : tokens) {
      std::string bytes;
      bool known = true;
      for (size_t at = 0; at < token.size() && known;) {
        const auto found = bytes_.find(character_or_replacement(token, at));
        known = found != bytes_.end();
        if (known) bytes += found->second;
      }
      text += known ? bytes : token;
    }
    return valid_utf8(text);
  }

 private:
  static constexpr int32_t kNone = -1;
  // A part of the word; one that was merged into the part before it has no id.
  struct Symbol {
    int32_t id, before, behind;
  };
  struct Candidate {
    int32_t rank, at, id;
    bool operator>(const Candidate& o) const { return std::tie(rank, at) > std::tie(o.rank, o.at); }
  };
  using Word = std::vector<Symbol>;

  bool add_word(std::string_view text, Word& word, TokenOutput& out) const {
    if (options_.whole_words)
      if (const auto whole = words_.find(std::string(text)); whole != words_.end())
        return out.add(static_cast<int32_t>(whole->second));
    word.clear();
    bool after_unknown = false;
    for (const char c : text) {
      int32_t id = options_.byte_ids[static_cast<unsigned char>(c)];
      const bool unknown = id < 0;
      if (unknown) id = after_unknown && options_.fuse_unknown ? -1 : options_.unknown_id;
      after_unknown = unknown;
      if (id < 0) continue;
      const auto at = static_cast<int32_t>(word.size());
      word.push_back({id, at - 1, at + 1});
    }
    merge(word);
    for (const Symbol& symbol : word)
      if (symbol.id >= 0 && !out.add(symbol.id)) return false;
    return true;
  }

  void merge(Word& word) const {
    const auto size = static_cast<int32_t>(word.size());
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](int32_t left, int32_t right) {
      if (left < 0 || right >= size) return;
      const auto found = merges_.find(
          pair_of(word[static_cast<size_t>(left)].id, word[static_cast<size_t>(right)].id));
      if (found != merges_.end()) queue.push({found->second.rank, left, found->second.id});
    };
    for (int32_t i = 0; i + 1 < size; ++i) consider(i, i + 1);
    while (!queue.empty()) {
      const Candidate top = queue.top();
      queue.pop();
      Symbol& left = word[static_cast<size_t>(top.at)];
      if (left.id < 0 || left.behind >= size) continue;
      Symbol& right = word[static_cast<size_t>(left.behind)];
      const auto found = merges_.find(pair_of(left.id, right.id));
      if (found == merges_.end() || found->second.id != top.id) continue;  // of before
      left.id = top.id;
      left.behind = right.behind;
      right.id = kNone;
      if (left.behind < size) word[static_cast<size_t>(left.behind)].before = top.at;
      consider(left.before, top.at);
      consider(top.at, left.behind);
    }
  }

  BpeOptions options_;
  Merges merges_;
  std::map<std::string, int64_t> words_;  // as bytes, where whole words are looked up
  std::unordered_map<char32_t, char> bytes_;
};

// ---- The file

// Both parts of a merge: a list of two, or a text with a blank between them.
std::pair<std::string, std::string> parts_of(const JsonNode& merge) {
  if (merge.json().is_array()) {
    if (merge.list_size() != 2) merge.malformed("is no pair");
    return {merge[size_t{0}].text(), merge[size_t{1}].text()};
  }
  const std::string& text = merge.text();
  const size_t blank = text.find(' ');
  if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos)
    merge.malformed("is no pair of tokens with a blank between them");
  return {text.substr(0, blank), text.substr(blank + 1)};
}

BpeModel::Merges read_merges(const JsonNode& list, const std::map<std::string, int64_t>& vocab) {
  BpeModel::Merges merges;
  for (size_t rank = 0; rank < list.list_size(); ++rank) {
    const JsonNode merge = list[rank];
    const auto [left, right] = parts_of(merge);
    const auto id = [&](const std::string& token) {
      const auto found = vocab.find(token);
      if (found == vocab.end())
        merge.malformed(fmt::format("needs '{}', which is not in the vocabulary", token));
      return static_cast<int32_t>(found->second);
    };
    merges[BpeModel::pair_of(id(left), id(right))] = {static_cast<int32_t>(rank), id(left + right)};
  }
  return merges;
}

void require_flag(const JsonNode& node, const char* key, bool value) {
  if (node.has(key) && node[key].flag() != value)
    node[key].refuse(value ? "it must be true" : "it must be false");
}

}  // namespace

ReadTextModel read_bpe_model(const JsonNode& root) {
  ReadTextModel read;
  BpeOptions options;
  const JsonNode model = root["model"];
  if (model.has("dropout") && model["dropout"].json() != 0)
    model["dropout"].refuse("it must be null");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (model.has(key) && !model[key].text().empty()) model[key].refuse("it must be null or empty");
  require_flag(model, "byte_fallback", false);
  options.fuse_unknown = model.has("fuse_unk") && model["fuse_unk"].flag();
  options.whole_words = model.has("ignore_merges") && model["ignore_merges"].flag();
  read.vocab = read_token_ids(model["vocab"]);
  read.size = static_cast<int64_t>(read.vocab.size());
  if (model.has("unk_token")) {
    const auto unknown = read.vocab.find(model["unk_token"].text());
    if (unknown != read.vocab.end())
      options.unknown_id = static_cast<int32_t>(unknown->second);
    else
      model["unk_token"].malformed("is not in the vocabulary");
  }
  const auto characters = byte_characters();
  std::map<std::string, int64_t> words;
  for (size_t byte = 0; byte < characters.size(); ++byte) {
    std::string token;
    append_utf8(characters[byte], token);
    const auto found = read.vocab.find(token);
    options.byte_ids[byte] = found == read.vocab.end() ? -1 : static_cast<int32_t>(found->second);
  }
  auto merges = read_merges(model["merges"], read.vocab);

  if (root.has("normalizer")) {
    const JsonNode type = root["normalizer"]["type"];
    if (type.text() != "NFC") type.refuse("it must be NFC, or the normalizer null");
    options.nfc = true;
  }
  const JsonNode split = root["pre_tokenizer"];
  if (split.is_null()) split.refuse("it must be ByteLevel");
  if (split["type"].text() != "ByteLevel") split["type"].refuse("it must be ByteLevel");
  options.prefix_space = split["add_prefix_space"].flag();
  require_flag(split, "use_regex", true);
  if (root.has("decoder")) {
    const JsonNode type = root["decoder"]["type"];
    if (type.text() != "ByteLevel") type.refuse("it must be ByteLevel");
  }
  if (options.whole_words) {
    std::unordered_map<char32_t, char> bytes;
    for (size_t byte = 0; byte < characters.size(); ++byte)
      bytes.emplace(characters[byte], static_cast<char>(byte));
    for (const auto& [token, id] : read.vocab) {
      std::string word;
      bool known = true;
      for (size_t at = 0; at < token.size() && known;) {
        const auto found = bytes.find(character_or_replacement(token, at));
        known = found != bytes.end();
        if (known) word += found->second;
      }
      if (known) words.emplace(word, id);
    }
  }
  read.model = std::make_unique<BpeModel>(options, std::move(merges), std::move(words));
  return read;
}

}  // namespace amur
