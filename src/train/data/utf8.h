// Characters of UTF-8 texts.
#pragma once

#include <string>
#include <string_view>

namespace amur {

void append_utf8(char32_t c, std::string& out);

// The character at `at`, which moves behind it. `text` is valid UTF-8.
char32_t next_character(std::string_view text, size_t& at);

// The same of any bytes; U+FFFD for an ill-formed part, as Unicode
// recommends it (3.9, "best practice").
char32_t character_or_replacement(std::string_view text, size_t& at);

// `text` with U+FFFD for what is not UTF-8.
std::string valid_utf8(std::string_view text);

// Unicode's property White_Space.
bool is_white_space(char32_t c);

}  // namespace amur
