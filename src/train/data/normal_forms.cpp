#include "src/train/data/normal_forms.h"

#include <unicode/uniset.h>
#include <unicode/unistr.h>

#include <optional>

#include "src/core/error.h"

namespace amur {
namespace {

// A form of normalisation for the characters of Unicode 12.1 alone.
class FormOf12 {
 public:
  explicit FormOf12(const icu::Normalizer2* (*newest)(UErrorCode&)) {
    UErrorCode status = U_ZERO_ERROR;
    known_.applyPattern(UNICODE_STRING_SIMPLE("[:age=12.1:]"), status).freeze();
    const icu::Normalizer2* form = newest(status);
    if (U_FAILURE(status)) throw IoError("Unicode data is missing: {}", u_errorName(status));
    normalizer_.emplace(*form, known_);
  }
  const icu::Normalizer2& normalizer() const { return *normalizer_; }

 private:
  icu::UnicodeSet known_;
  std::optional<icu::FilteredNormalizer2> normalizer_;
};

}  // namespace

const icu::Normalizer2& composition() {
  static const FormOf12 form(icu::Normalizer2::getNFCInstance);
  return form.normalizer();
}
const icu::Normalizer2& decomposition() {
  static const FormOf12 form(icu::Normalizer2::getNFDInstance);
  return form.normalizer();
}

}  // namespace amur
