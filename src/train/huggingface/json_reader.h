// JSON files from elsewhere: small, of known depth, with messages that name file and key.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/error.h"

namespace amur {

using OrderedJson = nlohmann::ordered_json;

// An object (or, with `list`, a list). IoError where it is none, or is nested deeper than any such
// file is.
inline OrderedJson parse_json(std::string_view text, const std::string& origin, bool list = false) {
  constexpr int kDeepest = 32;
  constexpr size_t kLargest = size_t{1} << 24;
  if (text.size() > kLargest)
    throw IoError("{}: {} bytes are too many for such a file", origin, text.size());
  try {
    OrderedJson json = OrderedJson::parse(text.begin(), text.end(),
                                          [](int depth, OrderedJson::parse_event_t, OrderedJson&) {
                                            if (depth > kDeepest) throw IoError("nested too deep");
                                            return true;
                                          });
    if (list ? !json.is_array() : !json.is_object())
      throw IoError("not {}", list ? "a list" : "an object");
    return json;
  } catch (const OrderedJson::exception& e) {
    throw IoError("{} is no JSON: {}", origin, e.what());
  } catch (const IoError& e) {
    throw IoError("{}: {}", origin, e.what());
  }
}

// One object of such a file.
class JsonObject {
 public:
  JsonObject(const OrderedJson& json, std::string origin)
      : json_(json), origin_(std::move(origin)) {}

  bool has(const char* key) const {
    const auto it = json_.find(key);
    return it != json_.end() && !it->is_null();
  }
  // The value as it stands in the file, cut where it is long; "nothing" where there is none.
  std::string text_of(const char* key) const {
    constexpr size_t kLongest = 80;
    if (!has(key)) return "nothing";
    std::string text = json_[key].dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
    return text;
  }
  int64_t whole(const char* key, int64_t least, int64_t most) const {
    const auto it = json_.find(key);
    if (it == json_.end() || !it->is_number_integer() ||
        (it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(most)) ||
        it->get<int64_t>() < least || it->get<int64_t>() > most)
      throw UsageError("{}: {}: a whole number from {} to {} is wanted, found {}", origin_, key,
                       least, most, text_of(key));
    return it->get<int64_t>();
  }
  int64_t whole_or(const char* key, int64_t least, int64_t most, int64_t otherwise) const {
    return has(key) ? whole(key, least, most) : otherwise;
  }
  double real_or(const char* key, double least, double most, double otherwise) const {
    if (!has(key)) return otherwise;
    const auto it = json_.find(key);
    if (!it->is_number() || !(it->get<double>() >= least) || !(it->get<double>() <= most))
      throw UsageError("{}: {}: a number from {} to {} is wanted, found {}", origin_, key, least,
                       most, text_of(key));
    return it->get<double>();
  }
  bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const auto it = json_.find(key);
    if (!it->is_boolean())
      throw UsageError("{}: {}: true or false is wanted, found {}", origin_, key, text_of(key));
    return it->get<bool>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    const auto it = json_.find(key);
    if (!it->is_string())
      throw UsageError("{}: {}: text is wanted, found {}", origin_, key, text_of(key));
    return it->get<std::string>();
  }
  // Refuses an option whose value is not the one that Amur computes; an absent one has it.
  void only(const char* key, const OrderedJson& value) const {
    if (!has(key) || json_[key] == value) return;
    throw UsageError("{}: {} {} is not supported; it must be {} or left out", origin_, key,
                     text_of(key), value.dump());
  }
  [[noreturn]] void refuse(const char* key, const std::string& wanted) const {
    throw UsageError("{}: {} {} is not supported; {}", origin_, key, text_of(key), wanted);
  }
  const std::string& origin() const { return origin_; }
  const OrderedJson& json() const { return json_; }

 private:
  const OrderedJson& json_;
  std::string origin_;
};

}  // namespace amur
