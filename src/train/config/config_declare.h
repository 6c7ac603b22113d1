// How keys are declared: a name, a member, a type with its range, a line of documentation.
#pragma once

#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "src/train/config/config_schema.h"

namespace amur::config {

// Bounds of a number; an open end is excluded.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool open_low = false;
  bool open_high = false;

  bool contains(double x) const {
    return std::isfinite(x) && (open_low ? x > low : x >= low) &&
           (open_high ? x < high : x <= high);
  }
  std::string text() const {
    if (std::isinf(low) && std::isinf(high)) return "";
    if (std::isinf(high)) return fmt::format("{} {}", open_low ? " above" : " of at least", low);
    return fmt::format("{} {} {} {}", open_low ? " above" : " from", low,
                       open_low    ? open_high ? "and below" : "up to"
                       : open_high ? "to below"
                                   : "to",
                       high);
  }
};

inline Range any() {
  return {};
}
inline Range at_least(double low) {
  return {.low = low};
}
inline Range above(double low) {
  return {.low = low, .open_low = true};
}
inline Range between(double low, double high) {
  return {.low = low, .high = high};
}
inline Range from_below(double low, double high) {
  return {.low = low, .high = high, .open_high = true};
}
inline Range inside(double low, double high) {
  return {.low = low, .high = high, .open_low = true, .open_high = true};
}

template <class T>
bool parse_number(const std::string& text, const Range& range, T& value) {
  const char* end = text.data() + text.size();
  T parsed{};
  auto [stop, error] = std::from_chars(text.data(), end, parsed);
  if (error != std::errc{} || stop != end || !range.contains(static_cast<double>(parsed)))
    return false;
  value = parsed;
  return true;
}

inline constexpr OnResume kFixed = OnResume::fixed;

template <class E>
using Words = std::vector<std::pair<const char*, E>>;

// Adds keys to a group; `access(config, entry)` gives the struct that holds their members.
template <class Access>
class Declare {
 public:
  Declare(Group& group, Access access) : group_(group), access_(access) {}

  template <class S, class T>
  requires std::is_integral_v<T>
  void whole(const char* name, T S::*member, Range range, const char* doc,
             OnResume on_resume = {}) {
    add(
        name, "a whole number" + range.text(), doc, on_resume, member,
        [range](T& to, const std::string& text) { return parse_number(text, range, to); },
        [](T value) { return fmt::format("{}", value); });
  }

  // A whole number of at least 1, or the word; 0 means the word and is read as such.
  template <class S>
  void whole_or(const char* word, const char* name, int64_t S::*member, int64_t most,
                const char* doc) {
    add(
        name, fmt::format("{} or a whole number from 1 to {}", word, most), doc, {}, member,
        [=](int64_t& to, const std::string& text) {
          return parse_number(text == word ? "0" : text, between(0, static_cast<double>(most)), to);
        },
        [=](int64_t value) { return value == 0 ? word : fmt::format("{}", value); });
  }

  template <class S>
  void real(const char* name, double S::*member, Range range, const char* doc,
            OnResume on_resume = {}) {
    add(
        name, "a number" + range.text(), doc, on_resume, member,
        [range](double& to, const std::string& text) { return parse_number(text, range, to); },
        [](double value) { return fmt::format("{}", value); });
  }

  template <class S>
  void flag(const char* name, bool S::*member, const char* doc, OnResume on_resume = {}) {
    words(name, member, Words<bool>{{"true", true}, {"false", false}}, doc, on_resume);
  }

  template <class S>
  void text(const char* name, std::string S::*member, const char* doc, OnResume on_resume = {}) {
    add(
        name, "a text", doc, on_resume, member,
        [](std::string& to, const std::string& text) {
          to = text;
          return true;
        },
        [](const std::string& value) { return value; });
    group_.keys.back().quoted = true;
  }

  template <class S>
  void bytes(const char* name, int64_t S::*member, const char* doc, OnResume on_resume = {}) {
    add(
        name, "a number of bytes such as 512MiB or 2GB", doc, on_resume, member,
        [](int64_t& to, const std::string& text) { return parse_bytes(text, to); },
        [](int64_t value) { return bytes_text(value); });
  }

  // The same or the word, which is kept as -1.
  template <class S>
  void bytes_or(const char* word, const char* name, int64_t S::*member, const char* doc) {
    add(
        name, fmt::format("{} or a number of bytes such as 512MiB or 2GB", word), doc, {}, member,
        [=](int64_t& to, const std::string& text) {
          if (text != word) return parse_bytes(text, to);
          to = -1;
          return true;
        },
        [=](int64_t value) { return value < 0 ? word : bytes_text(value); });
  }

  template <class S, class E>
  void words(const char* name, E S::*member, Words<E> words, const char* doc,
             OnResume on_resume = {}) {
    std::string type = words.size() > 2 ? "one of " : "";
    std::vector<std::string> allowed;
    for (size_t i = 0; i < words.size(); ++i) {
      if (i > 0) type += words.size() > 2 ? ", " : " or ";
      type += words[i].first;
      allowed.emplace_back(words[i].first);
    }
    add(
        name, type, doc, on_resume, member,
        [words](E& to, const std::string& text) {
          for (const auto& [word, value] : words) {
            if (text != word) continue;
            to = value;
            return true;
          }
          return false;
        },
        [words](E value) -> std::string {
          for (const auto& [word, meaning] : words)
            if (meaning == value) return word;
          throw InternalError("an enumeration holds a value that was not declared");
        });
    group_.keys.back().words = std::move(allowed);
  }

 private:
  template <class S, class T, class Parse, class Print>
  void add(const char* name, std::string type, const char* doc, OnResume on_resume, T S::*member,
           Parse parse, Print print) {
    Access access = access_;
    Key key;
    key.name = name;
    key.type = std::move(type);
    key.on_resume = on_resume;
    key.doc = doc;
    key.set = [=](Config& config, size_t entry, const std::string& text) {
      return parse(access(config, entry).*member, text);
    };
    key.yaml = [=](const Config& config, size_t entry) -> std::string {
      return print(access(config, entry).*member);
    };
    group_.keys.push_back(std::move(key));
  }

  Group& group_;
  Access access_;
};

}  // namespace amur::config
