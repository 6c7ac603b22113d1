// Tokens that stand in a text as they are: the `added_tokens` of a Hugging Face tokenizer.json
// (tokenizers 0.23, src/tokenizer/added_vocabulary.rs).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace amur {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no letter or digit is beside it
  bool lstrip = false;       // takes the white space on its left
  bool rstrip = false;       // and on its right
  bool normalized = true;    // is looked for in the normalised text, as normalised itself
  bool special = false;      // left out by decode
};

// Finds tokens of which none begins another's place: the leftmost, and of those the longest.
class AddedTokenFinder {
 public:
  // `patterns` are what to look for, one a token, different and not empty.
  struct Pattern {
    std::string text;
    AddedToken token;
  };
  explicit AddedTokenFinder(std::vector<Pattern> patterns);

  bool empty() const { return patterns_.empty(); }
  // A part of a text: a token, or what lies between tokens (id -1). None is empty, unless a token.
  struct Part {
    int32_t id;
    std::string_view text;
  };
  // Valid UTF-8 is needed only beside tokens that are `single_word` or strip white space.
  std::vector<Part> split(std::string_view text) const;

 private:
  const Pattern* match(std::string_view text, size_t at) const;

  std::vector<Pattern> patterns_;      // by first byte, the longer first
  std::array<uint32_t, 257> first_{};  // of each first byte
};

}  // namespace amur
