// The text that BERT's tokenizers see: how Hugging Face's BertNormalizer and BertPreTokenizer
// (tokenizers 0.23, src/normalizers/bert.rs and src/pre_tokenizers/bert.rs) clean a text and cut it
// into words, over ICU.
//
// Those take the categories of characters from Unicode 8.0, decompositions from 12.1 and lower case
// from 17.0. A model was trained on what they make of a text, so the same versions are kept here:
// ICU is asked about nothing that was added later, and the characters that changed since are listed
// in bert_text.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "src/train/data/utf8.h"

namespace amur {

class BertNormalizer {
 public:
  struct Options {
    bool clean_text = true;            // no control characters, every white space is a blank
    bool handle_chinese_chars = true;  // blanks around ideographs
    bool strip_accents = true;         // NFD without non-spacing marks
    bool lowercase = true;
  };
  explicit BertNormalizer(const Options& options);

  // Appends `text` as normalised, in valid UTF-8. Bytes that are not UTF-8 count as U+FFFD, one for
  // each ill-formed part as Unicode recommends it (3.9, "best practice"); clean_text removes it.
  void append(std::string_view text, std::string& normal) const;

 private:
  class Run;  // of characters above ASCII

  Options options_;
  std::array<char, 128> ascii_;  // what becomes of each; -1: nothing
};

// What a character of a normalised text does to words.
enum class BertBreak : uint8_t { none, space, punctuation };
BertBreak bert_break(char32_t c);

// Calls `word(std::string_view)` for the words of a normalised text until it returns false. White
// space parts words; a mark of punctuation is a word of its own. Whether all words were taken.
template <class Word>
bool for_each_bert_word(std::string_view normal, Word&& word);

template <class Word>
bool for_each_bert_word(std::string_view normal, Word&& word) {
  size_t start = 0;
  for (size_t at = 0; at < normal.size();) {
    const size_t first = at;
    const BertBreak kind = bert_break(next_character(normal, at));
    if (kind == BertBreak::none) continue;
    if (start < first && !word(normal.substr(start, first - start))) return false;
    if (kind == BertBreak::punctuation && !word(normal.substr(first, at - first))) return false;
    start = at;
  }
  return start == normal.size() || word(normal.substr(start));
}

}  // namespace amur
