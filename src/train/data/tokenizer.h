// Text to token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/random.h"
#include "src/train/config/config.h"

namespace amur {

// As data.tokenizer spells it.
const char* name_of(TokenizerKind kind);

class Tokenizer {
 public:
  // What data.tokenizer names: a SentencePiece (unigram) vocabulary trained on texts that `next`
  // yields until it returns false, or hashed n-grams (src/train/data/ngram_tokenizer.h), which need
  // none. Deterministic for equal texts. Progress goes to the log. UsageError for the kinds
  // that only come from a file.
  static std::unique_ptr<Tokenizer> train(const DataConfig& config,
                                          const std::function<bool(std::string&)>& next);
  // From the bytes that `serialised` gave, of any kind: those of a SentencePiece model file, of a
  // Hugging Face tokenizer.json (src/train/data/json_tokenizer.h), or of n-grams; a tokenizer.json
  // that was made of a SentencePiece vocabulary (src/train/data/tokenizer_json.h) is that
  // vocabulary. IoError where they are damaged, UsageError where they ask for what is not
  // supported.
  static std::unique_ptr<Tokenizer> from_bytes(std::string bytes, const std::string& origin);
  virtual ~Tokenizer() = default;

  virtual TokenizerKind tokenizer_kind() const = 0;
  const char* kind() const { return name_of(tokenizer_kind()); }  // its name in the checkpoint
  virtual int64_t vocab_size() const = 0;
  virtual const std::string& serialised() const = 0;  // what the checkpoint keeps
  // Appends the ids of `text` with begin and end markers, cut at `max_length`; true if it was cut.
  virtual bool encode(std::string_view text, int64_t max_length,
                      std::vector<int32_t>& ids) const = 0;
  // Subword regularisation: a segmentation drawn with SentencePiece's alpha; a function of the key.
  virtual bool encode_sampled(std::string_view text, int64_t max_length, double alpha,
                              RandomKey key, std::vector<int32_t>& ids) const = 0;
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
};

}  // namespace amur
