#include "src/train/data/utf8.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>

namespace amur {

void append_utf8(char32_t c, std::string& out) {
  char bytes[U8_MAX_LENGTH];
  int32_t size = 0;
  U8_APPEND_UNSAFE(bytes, size, c);
  out.append(bytes, static_cast<size_t>(size));
}

char32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at++);
  if (lead < 0x80) return lead;
  const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
  char32_t c = lead & (0x3fu >> more);
  for (int i = 0; i < more; ++i) c = c << 6 | (byte(at++) & 0x3fu);
  return c;
}

char32_t character_or_replacement(std::string_view text, size_t& at) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + at;
  const auto size = static_cast<int32_t>(std::min(text.size() - at, size_t{U8_MAX_LENGTH}));
  int32_t i = 0;
  UChar32 c;
  U8_NEXT_OR_FFFD(bytes, i, size, c);
  at += static_cast<size_t>(i);
  return static_cast<char32_t>(c);
}

std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (size_t at = 0; at < text.size();) append_utf8(character_or_replacement(text, at), valid);
  return valid;
}

bool is_white_space(char32_t c) {
  return u_isUWhiteSpace(static_cast<UChar32>(c));
}

}  // namespace amur
