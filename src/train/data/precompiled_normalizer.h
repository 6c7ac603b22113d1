// SentencePiece's compiled table of replacements as Hugging Face's normalizer "Precompiled" applies
// it (the crate spm_precompiled 0.1, and tokenizers 0.23, src/normalizers/precompiled.rs): whole
// grapheme clusters of less than 6 bytes are looked up, else their characters one by one; the
// shortest match counts, and what the cluster has behind it is dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace amur {

class PrecompiledNormalizer {
 public:
  // `table`: the size of a double array (4 bytes, little-endian), the array, and the replacements,
  // each with a 0 behind it. IoError where it is not of this form.
  PrecompiledNormalizer(std::string_view table, const std::string& origin);

  // Appends the text, which is valid UTF-8, as replaced.
  void append(std::string_view text, std::string& normal) const;

 private:
  // Whether something stands for a beginning of `key`; appends it.
  bool replace(std::string_view key, std::string& normal) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

// The end of the grapheme cluster that begins at `at` (UAX 29, extended ones, but for Indic
// conjuncts, which have 9 bytes or more). `text` is valid UTF-8.
size_t cluster_end(std::string_view text, size_t at);

std::string decode_base64(std::string_view text, const std::string& origin);

}  // namespace amur
