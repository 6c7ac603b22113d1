#include "src/train/data/precompiled_normalizer.h"

#include <unicode/uchar.h>

#include <array>
#include <cstring>

#include "src/core/error.h"
#include "src/train/data/utf8.h"

namespace amur {
namespace {

constexpr size_t kLongestCluster = 5;  // bytes that are looked up as a whole

// A unit of the double array (Darts-clone): a label, whether a value follows, and where to.
constexpr uint32_t label_of(uint32_t unit) {
  return unit & (uint32_t{1} << 31 | 0xff);
}
constexpr bool has_value(uint32_t unit) {
  return (unit >> 8 & 1) != 0;
}
constexpr uint32_t value_of(uint32_t unit) {
  return unit & ~(uint32_t{1} << 31);
}
constexpr size_t offset_of(uint32_t unit) {
  return size_t{unit >> 10} << ((unit & 1u << 9) >> 6);
}

UGraphemeClusterBreak break_of(char32_t c) {
  return static_cast<UGraphemeClusterBreak>(
      u_getIntPropertyValue(static_cast<UChar32>(c), UCHAR_GRAPHEME_CLUSTER_BREAK));
}

bool is_pictograph(char32_t c) {
  return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_EXTENDED_PICTOGRAPHIC);
}

bool is_control(UGraphemeClusterBreak b) {
  return b == U_GCB_CONTROL || b == U_GCB_CR || b == U_GCB_LF;
}

// UAX 29, GB6 to GB8: syllables of Hangul.
bool joins_syllable(UGraphemeClusterBreak before, UGraphemeClusterBreak next) {
  switch (before) {
    case U_GCB_L:
      return next == U_GCB_L || next == U_GCB_V || next == U_GCB_LV || next == U_GCB_LVT;
    case U_GCB_LV:
    case U_GCB_V:
      return next == U_GCB_V || next == U_GCB_T;
    case U_GCB_LVT:
    case U_GCB_T:
      return next == U_GCB_T;
    default:
      return false;
  }
}

}  // namespace

size_t cluster_end(std::string_view text, size_t at) {
  char32_t c = next_character(text, at);
  if (at < text.size() && c < 0x80 && static_cast<unsigned char>(text[at]) < 0x80)
    return c == '\r' && text[at] == '\n' ? at + 1 : at;
  UGraphemeClusterBreak before = break_of(c);
  // A pictograph and what extends it; then also the joiner behind them.
  bool pictograph = is_pictograph(c), joined = false;
  bool one_indicator = before == U_GCB_REGIONAL_INDICATOR;
  while (at < text.size()) {
    size_t behind = at;
    c = next_character(text, behind);
    const UGraphemeClusterBreak next = break_of(c);
    bool together = false;
    if (before == U_GCB_CR && next == U_GCB_LF) {
      together = true;
    } else if (!is_control(before) && !is_control(next)) {
      together = joins_syllable(before, next) || next == U_GCB_EXTEND || next == U_GCB_ZWJ ||
                 next == U_GCB_SPACING_MARK || before == U_GCB_PREPEND ||
                 (joined && is_pictograph(c)) ||
                 (one_indicator && next == U_GCB_REGIONAL_INDICATOR);
    }
    if (!together) break;
    joined = pictograph && next == U_GCB_ZWJ;
    pictograph = is_pictograph(c) || (pictograph && next == U_GCB_EXTEND);
    one_indicator = next == U_GCB_REGIONAL_INDICATOR && !one_indicator;
    before = next;
    at = behind;
  }
  return at;
}

PrecompiledNormalizer::PrecompiledNormalizer(std::string_view table, const std::string& origin) {
  uint32_t bytes = 0;
  if (table.size() < sizeof(bytes)) throw IoError("{} is cut off", origin);
  std::memcpy(&bytes, table.data(), sizeof(bytes));
  table.remove_prefix(sizeof(bytes));
  if (bytes > table.size() || bytes % sizeof(uint32_t) != 0 || bytes == 0)
    throw IoError("{} is damaged: an array of {} bytes in {}", origin, bytes, table.size());
  units_.resize(bytes / sizeof(uint32_t));
  std::memcpy(units_.data(), table.data(), bytes);
  replacements_ = table.substr(bytes);
  if (valid_utf8(replacements_) != replacements_)
    throw IoError("{} is damaged: its replacements are not UTF-8", origin);
}

bool PrecompiledNormalizer::replace(std::string_view key, std::string& normal) const {
  size_t at = offset_of(units_[0]);
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0) return false;
    at ^= byte;
    if (at >= units_.size() || label_of(units_[at]) != byte) return false;
    const bool found = has_value(units_[at]);
    at ^= offset_of(units_[at]);
    if (!found) continue;
    if (at >= units_.size()) return false;
    const size_t first = value_of(units_[at]);
    // Never inside of a character, whatever the file says.
    if (first > replacements_.size() ||
        (first < replacements_.size() &&
         (static_cast<unsigned char>(replacements_[first]) & 0xc0) == 0x80))
      return false;
    normal +=
        std::string_view(replacements_).substr(first, replacements_.find('\0', first) - first);
    return true;
  }
  return false;
}

void PrecompiledNormalizer::append(std::string_view text, std::string& normal) const {
  for (size_t at = 0; at < text.size();) {
    const size_t end = cluster_end(text, at);
    if (end - at <= kLongestCluster && replace(text.substr(at, end - at), normal)) {
      at = end;
      continue;
    }
    while (at < end) {
      size_t next = at;
      next_character(text, next);
      const std::string_view character = text.substr(at, next - at);
      if (!replace(character, normal)) normal += character;
      at = next;
    }
  }
}

std::string decode_base64(std::string_view text, const std::string& origin) {
  static const auto values = [] {
    constexpr std::string_view kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::array<int, 256> v{};
    v.fill(-1);
    for (size_t i = 0; i < kDigits.size(); ++i)
      v[static_cast<unsigned char>(kDigits[i])] = static_cast<int>(i);
    return v;
  }();
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string bytes;
  bytes.reserve(text.size() * 3 / 4);
  uint32_t group = 0;
  int bits = 0;
  for (const char c : text) {
    const int value = values[static_cast<unsigned char>(c)];
    if (value < 0) throw IoError("{} is no base64", origin);
    group = group << 6 | static_cast<uint32_t>(value);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes.push_back(static_cast<char>(group >> bits & 0xff));
  }
  return bytes;
}

}  // namespace amur
