#include "src/train/data/bert_text.h"

#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include "src/core/error.h"
#include "src/train/data/normal_forms.h"
#include "src/train/data/utf8.h"

namespace amur {
namespace {

constexpr char kNothing = -1;
constexpr char32_t kReplacement = 0xfffd;
// A run of characters above ASCII is normalised in parts of about this many.
constexpr int32_t kRunLength = 512;

constexpr bool ascii_punctuation(unsigned char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

constexpr bool ascii_space(unsigned char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

// Whether the reference's categories know the character.
bool in_unicode_8(char32_t c) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(c), age);
  return age[0] >= 1 && age[0] <= 8;
}

uint32_t category_mask(char32_t c) {
  return U_GET_GC_MASK(static_cast<UChar32>(c));
}

// Cc, Cf, Co.
bool is_control(char32_t c) {
  constexpr uint32_t kMask = U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK;
  return (category_mask(c) & kMask) != 0 && in_unicode_8(c);
}

bool is_nonspacing_mark(char32_t c) {
  switch (c) {  // in another category in Unicode 8.0
    case 0x1734:
      return true;
    case 0x1885:
    case 0x1886:
    case 0xa9bd:
    case 0x111c9:
      return false;
    default:
      return (category_mask(c) & U_GC_MN_MASK) != 0 && in_unicode_8(c);
  }
}

bool is_punctuation(char32_t c) {
  if (c == 0x166d || c == 0x111c9) return true;  // was so in Unicode 8.0
  return (category_mask(c) & U_GC_P_MASK) != 0 && in_unicode_8(c);
}

// The blocks of the reference, with its 2B920 for 2B820.
bool is_chinese(char32_t c) {
  if (c < 0x3400) return false;
  return (c >= 0x4e00 && c <= 0x9fff) || c <= 0x4dbf || (c >= 0x20000 && c <= 0x2a6df) ||
         (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) ||
         (c >= 0x2b920 && c <= 0x2ceaf) || (c >= 0xf900 && c <= 0xfaff) ||
         (c >= 0x2f800 && c <= 0x2fa1f);
}

// Capitals that Unicode 16.0 and 17.0 brought, which an older ICU does not know.
struct LowerCase {
  char32_t first, last, lower;
};
constexpr LowerCase kNewerCapitals[] = {
    {0x1c89, 0x1c89, 0x1c8a},    {0xa7cb, 0xa7cb, 0x264},  {0xa7cc, 0xa7cc, 0xa7cd},
    {0xa7ce, 0xa7ce, 0xa7cf},    {0xa7d2, 0xa7d2, 0xa7d3}, {0xa7d4, 0xa7d4, 0xa7d5},
    {0xa7da, 0xa7da, 0xa7db},    {0xa7dc, 0xa7dc, 0x19b},  {0x10d50, 0x10d65, 0x10d70},
    {0x16ea0, 0x16eb8, 0x16ebb},
};

char32_t lower_case(char32_t c) {
  if (c >= kNewerCapitals[0].first)
    for (const LowerCase& range : kNewerCapitals)
      if (c >= range.first && c <= range.last) return range.lower + (c - range.first);
  return static_cast<char32_t>(u_tolower(static_cast<UChar32>(c)));
}

}  // namespace

BertBreak bert_break(char32_t c) {
  if (c < 0x80) {
    const auto ascii = static_cast<unsigned char>(c);
    if (ascii_punctuation(ascii)) return BertBreak::punctuation;
    return ascii_space(ascii) ? BertBreak::space : BertBreak::none;
  }
  if (is_white_space(c)) return BertBreak::space;
  return is_punctuation(c) ? BertBreak::punctuation : BertBreak::none;
}

// Characters above ASCII that stand together: ASCII takes no part in decompositions.
class BertNormalizer::Run {
 public:
  Run(const Options& options, std::string& out) : options_(options), out_(out) {}

  void add(char32_t c) {
    if (characters_.length() >= kRunLength &&
        decomposition().hasBoundaryBefore(static_cast<UChar32>(c)))
      flush();
    characters_.append(static_cast<UChar32>(c));
    changes_ |= options_.strip_accents && !decomposition().isInert(static_cast<UChar32>(c));
  }

  void flush() {
    if (characters_.isEmpty()) return;
    if (changes_) {
      UErrorCode status = U_ZERO_ERROR;
      write(decomposition().normalize(characters_, status));
      if (U_FAILURE(status)) throw IoError("text cannot be normalised: {}", u_errorName(status));
    } else {
      write(characters_);
    }
    characters_.remove();
    changes_ = false;
  }

 private:
  void write(const icu::UnicodeString& text) {
    for (int32_t at = 0; at < text.length();) {
      const auto c = static_cast<char32_t>(text.char32At(at));
      at += U16_LENGTH(c);
      if (options_.strip_accents && is_nonspacing_mark(c)) continue;
      append_utf8(options_.lowercase ? lower_case(c) : c, out_);
      // The one character whose lower case is two.
      if (options_.lowercase && c == 0x130) append_utf8(0x307, out_);
    }
  }

  const Options& options_;
  std::string& out_;
  icu::UnicodeString characters_;
  bool changes_ = false;
};

BertNormalizer::BertNormalizer(const Options& options) : options_(options) {
  for (size_t i = 0; i < ascii_.size(); ++i) {
    const auto c = static_cast<unsigned char>(i);
    const bool control = (c < ' ' && c != '\t' && c != '\n' && c != '\r') || c == 0x7f;
    if (options.clean_text && control)
      ascii_[i] = kNothing;
    else if (options.clean_text && ascii_space(c))
      ascii_[i] = ' ';
    else
      ascii_[i] = static_cast<char>(options.lowercase && c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  }
}

void BertNormalizer::append(std::string_view text, std::string& normal) const {
  Run run(options_, normal);
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t at = 0; at < size;) {
    if (bytes[at] < 0x80) {
      const char c = ascii_[bytes[at++]];
      if (c == kNothing) continue;
      run.flush();
      normal.push_back(c);
      continue;
    }
    UChar32 decoded;
    U8_NEXT_OR_FFFD(bytes, at, size, decoded);
    const auto c = static_cast<char32_t>(decoded);
    if (options_.clean_text) {
      if (c == kReplacement || is_control(c)) continue;
      if (is_white_space(c)) {
        run.flush();
        normal.push_back(' ');
        continue;
      }
    }
    const bool chinese = options_.handle_chinese_chars && is_chinese(c);
    if (chinese) {
      run.flush();
      normal.push_back(' ');
    }
    run.add(c);
    if (chinese) {
      run.flush();
      normal.push_back(' ');
    }
  }
  run.flush();
}

}  // namespace amur
