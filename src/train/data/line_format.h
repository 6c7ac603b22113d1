// One line of a user's TSV or JSONL file.
#pragma once

#include <string>
#include <string_view>

#include "src/train/data/data.h"

namespace amur {

// The texts of a line without its newline, trimmed of white space:
//   tsv    query <TAB> document [<TAB> negative ...]; empty negatives are ignored
//   jsonl  {"query": text, "pos": [texts], "neg": [texts]} or
//          {"anchor": text, "positive": text, "negative": text}; each name of a pair may stand for
//          the other, a text for a list of one, and other members are ignored
// Returns why the line is malformed, or "" if it is not.
std::string parse_line(SourceFormat format, std::string_view line, RawSample& sample);

// Nothing but white space: neither a sample nor malformed.
bool is_blank(std::string_view line);
// Well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms).
bool is_utf8(std::string_view text);

// Calls visit(line, offset, number) for every line of a text: without newline, carriage return
// before it and byte-order mark at the start; number counts from 1.
template <class Visit>
void for_each_line(std::string_view text, Visit&& visit);
// The line that starts at `offset`, as `for_each_line` gives it.
std::string_view line_at(std::string_view text, size_t offset);

template <class Visit>
void for_each_line(std::string_view text, Visit&& visit) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  size_t at = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
  for (int64_t number = 1; at < text.size(); ++number) {
    const size_t end = text.find('\n', at);
    visit(line_at(text, at), at, number);
    if (end == std::string_view::npos) return;
    at = end + 1;
  }
}

}  // namespace amur
