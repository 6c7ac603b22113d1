// Where the kinds of a Hugging Face tokenizer.json differ: how a text between added tokens becomes
// ids (its normalizer, pre_tokenizer and model), and ids a text (its decoder).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/config/config.h"
#include "src/train/json_reader.h"

namespace amur {

// Tokens of one text: between the markers, as many as there is room for.
class TokenOutput {
 public:
  TokenOutput(std::vector<int32_t>& ids, size_t room) : ids_(ids), end_(ids.size() + room) {}

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

class TextModel {
 public:
  virtual ~TextModel() = default;

  virtual TokenizerKind kind() const = 0;
  virtual int32_t unknown_id() const = 0;  // -1: it has none
  // Whether a text may be taken in parts that end in front of a blank.
  virtual bool blanks_part_words() const { return false; }
  // Appends `text` as normalised, in valid UTF-8.
  virtual void normalise(std::string_view text, std::string& normal) const = 0;
  // The ids of a normalised text without added tokens; false where there was no room for all.
  virtual bool encode(std::string_view normal, TokenOutput& out) const = 0;
  virtual std::string decode(const std::vector<std::string>& tokens) const = 0;
};

constexpr int64_t kMostTokens = int64_t{1} << 24;

// A model and its vocabulary: token to id, of which there are `size`.
struct ReadTextModel {
  std::unique_ptr<TextModel> model;
  std::map<std::string, int64_t> vocab;
  int64_t size = 0;
};
// Of a whole file; UsageError and IoError as make_json_tokenizer has them.
ReadTextModel read_wordpiece_model(const JsonNode& root);
ReadTextModel read_bpe_model(const JsonNode& root);
ReadTextModel read_unigram_model(const JsonNode& root);

// The "vocab" of a model that is an object of ids.
std::map<std::string, int64_t> read_token_ids(const JsonNode& vocab);

}  // namespace amur
