#include "src/train/data/ngram_tokenizer.h"

#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <cstdio>

#include "src/core/error.h"
#include "src/core/hash.h"

namespace amur {
namespace {

constexpr const char* kFormat = "amur n-grams 1: %lld ids, %d to %d characters\n";

bool in_word(UChar32 c) {
  return u_isalnum(c) || (U_GET_GC_MASK(c) & U_GC_M_MASK) != 0;
}

class NgramTokenizer final : public Tokenizer {
 public:
  NgramTokenizer(int64_t ids, int shortest, int longest)
      : ids_(ids), shortest_(shortest), longest_(longest) {
    if (ids < 2 || shortest < 1 || longest < shortest)
      throw UsageError("n-grams of {} to {} characters in {} ids", shortest, longest, ids);
    char text[128];
    std::snprintf(text, sizeof(text), kFormat, static_cast<long long>(ids), shortest, longest);
    bytes_ = text;
    UErrorCode status = U_ZERO_ERROR;
    normalizer_ = icu::Normalizer2::getNFKCCasefoldInstance(status);
    if (U_FAILURE(status)) throw IoError("Unicode data is missing: {}", u_errorName(status));
  }

  TokenizerKind tokenizer_kind() const override { return TokenizerKind::ngrams; }
  int64_t vocab_size() const override { return ids_; }
  const std::string& serialised() const override { return bytes_; }

  bool encode(std::string_view text, int64_t max_length, std::vector<int32_t>& ids) const override {
    UErrorCode status = U_ZERO_ERROR;
    const icu::UnicodeString normal = normalizer_->normalize(
        icu::UnicodeString::fromUTF8({text.data(), static_cast<int32_t>(text.size())}), status);
    if (U_FAILURE(status)) throw IoError("text cannot be normalised: {}", u_errorName(status));
    const size_t first = ids.size();
    const auto limit = static_cast<size_t>(max_length);
    bool cut = false;
    std::string word;            // "<word>" in UTF-8
    std::vector<size_t> starts;  // of its characters
    const auto finish_word = [&] {
      if (starts.size() < 2) return;  // only "<"
      starts.push_back(word.size());
      word += '>';
      starts.push_back(word.size());
      const auto add = [&](size_t from, size_t to) {
        if (ids.size() - first == limit) {
          cut = true;
          return;
        }
        const uint64_t hash = mix64(fnv1a(std::string_view(word).substr(from, to - from)));
        ids.push_back(static_cast<int32_t>(1 + hash % static_cast<uint64_t>(ids_ - 1)));
      };
      const size_t characters = starts.size() - 1;
      add(0, word.size());
      for (auto n = static_cast<size_t>(shortest_); n <= static_cast<size_t>(longest_); ++n)
        for (size_t i = 0; i + n <= characters && n < characters; ++i)
          add(starts[i], starts[i + n]);
    };
    const auto open_word = [&] {
      word.assign(1, '<');
      starts = {0};
    };
    open_word();
    for (int32_t at = 0; at < normal.length() && !cut;) {
      const UChar32 c = normal.char32At(at);
      at += U16_LENGTH(c);
      if (in_word(c)) {
        starts.push_back(word.size());
        icu::UnicodeString(c).toUTF8String(word);
      } else {
        finish_word();
        open_word();
      }
    }
    finish_word();
    if (ids.size() == first) ids.push_back(0);
    return cut;
  }

  bool encode_sampled(std::string_view, int64_t, double, RandomKey,
                      std::vector<int32_t>&) const override {
    throw UsageError("data.subword_sampling: n-grams have one segmentation only; set it to 0");
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    return fmt::format("[{} hashed n-grams]", ids.size());
  }

 private:
  int64_t ids_;
  int shortest_, longest_;
  std::string bytes_;
  const icu::Normalizer2* normalizer_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_ngram_tokenizer(int64_t ids, int shortest, int longest) {
  return std::make_unique<NgramTokenizer>(ids, shortest, longest);
}

std::unique_ptr<Tokenizer> read_ngram_tokenizer(const std::string& bytes) {
  long long ids = 0;
  int shortest = 0, longest = 0;
  if (std::sscanf(bytes.c_str(), kFormat, &ids, &shortest, &longest) != 3) return nullptr;
  return make_ngram_tokenizer(ids, shortest, longest);
}

}  // namespace amur
