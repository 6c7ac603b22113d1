#include "src/train/data/added_tokens.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <tuple>

namespace amur {
namespace {

unsigned char first_byte(const std::string& text) {
  return static_cast<unsigned char>(text[0]);
}

// The character that begins at `at`, which moves behind it; negative at the end and where the bytes
// are no UTF-8.
UChar32 character_at(std::string_view text, size_t& at) {
  if (at == text.size()) return -1;
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + at;
  const auto size = static_cast<int32_t>(std::min(text.size() - at, size_t{U8_MAX_LENGTH}));
  int32_t i = 0;
  UChar32 c;
  U8_NEXT(bytes, i, size, c);
  at += static_cast<size_t>(i);
  return c;
}

// The one that ends there, where it moves to its first byte.
UChar32 character_before(std::string_view text, size_t& at) {
  if (at == 0) return -1;
  size_t start = at - 1;
  while (start > 0 && at - start < U8_MAX_LENGTH && U8_IS_TRAIL(text[start])) --start;
  size_t end = start;
  const UChar32 c = character_at(text.substr(0, at), end);
  if (end != at) return -1;
  at = start;
  return c;
}

// \w of Unicode's regular expressions (UTS 18, annex C).
bool in_word(UChar32 c) {
  if (c < 0) return false;
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || u_charType(c) == U_DECIMAL_DIGIT_NUMBER ||
         (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_PC_MASK)) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

bool is_space(UChar32 c) {
  return c >= 0 && u_isUWhiteSpace(c);
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {
  std::sort(patterns_.begin(), patterns_.end(), [](const Pattern& a, const Pattern& b) {
    return std::make_tuple(first_byte(a.text), b.text.size()) <
           std::make_tuple(first_byte(b.text), a.text.size());
  });
  for (const Pattern& pattern : patterns_) ++first_[first_byte(pattern.text) + size_t{1}];
  for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
}

const AddedTokenFinder::Pattern* AddedTokenFinder::match(std::string_view text, size_t at) const {
  const auto byte = static_cast<unsigned char>(text[at]);
  for (uint32_t i = first_[byte]; i < first_[byte + size_t{1}]; ++i)
    if (text.substr(at).starts_with(patterns_[i].text)) return &patterns_[i];
  return nullptr;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::split(std::string_view text) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !empty();) {
    const Pattern* found = match(text, at);
    if (!found) {
      ++at;
      continue;
    }
    const AddedToken& token = found->token;
    size_t start = at, stop = at + found->text.size();
    at = stop;
    if (token.single_word) {
      size_t before = start, behind = stop;
      if (in_word(character_before(text, before)) || in_word(character_at(text, behind))) continue;
    }
    if (token.lstrip)
      for (size_t i = start; start > done && is_space(character_before(text, i));) start = i;
    if (token.rstrip)
      for (size_t i = stop; is_space(character_at(text, i));) stop = i;
    if (done < start) parts.push_back({-1, text.substr(done, start - done)});
    parts.push_back({token.id, text.substr(start, stop - start)});
    done = stop;
  }
  if (done < text.size()) parts.push_back({-1, text.substr(done)});
  return parts;
}

}  // namespace amur
