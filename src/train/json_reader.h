// JSON files from elsewhere: values that know their place, so that messages name file and option.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "src/core/error.h"

namespace amur {

// Keeps the order of members, in which it looks for them one by one: for small files that are
// written again.
using OrderedJson = nlohmann::ordered_json;

class JsonNode {
 public:
  using Json = nlohmann::json;

  // IoError where the bytes are no JSON, or are nested deeper than any such file is.
  template <class AnyJson = Json>
  static AnyJson parse(std::string_view bytes, const std::string& origin) {
    constexpr int kDeepest = 64;
    const auto shallow = [&](int depth, typename AnyJson::parse_event_t, AnyJson&) {
      if (depth > kDeepest) throw IoError("{} is nested deeper than {}", origin, kDeepest);
      return true;
    };
    try {
      return AnyJson::parse(bytes.begin(), bytes.end(), shallow);
    } catch (const typename AnyJson::exception& error) {
      throw IoError("{} is not JSON: {}", origin, error.what());
    }
  }
  // An object to be changed and written again.
  static OrderedJson parse_ordered(std::string_view bytes, const std::string& origin) {
    constexpr size_t kLargest = size_t{1} << 20;
    if (bytes.size() > kLargest)
      throw IoError("{}: {} bytes are too many for such a file", origin, bytes.size());
    OrderedJson json = parse<OrderedJson>(bytes, origin);
    if (!json.is_object()) throw IoError("{}: the file is no object", origin);
    return json;
  }

  JsonNode(const Json& json, std::string origin) : json_(json), origin_(std::move(origin)) {}

  const Json& json() const { return json_; }
  const std::string& origin() const { return origin_; }  // the file
  // "normalizer.lowercase", as messages have it behind the file's name.
  const std::string& path() const { return path_; }

  // ---- The value itself: IoError where it is of another form

  bool is_null() const { return json_.is_null(); }
  const Json::object_t& object() const {
    if (!json_.is_object()) wrong("is no object");
    return json_.get_ref<const Json::object_t&>();
  }
  size_t list_size() const {
    if (!json_.is_array()) wrong("is no list");
    return json_.size();
  }
  const std::string& text() const {
    if (!json_.is_string()) wrong("is no text");
    return json_.get_ref<const std::string&>();
  }
  bool flag() const {
    if (!json_.is_boolean()) wrong("is neither true nor false");
    return json_.get<bool>();
  }
  int64_t whole(int64_t least, int64_t most) const {
    if (!json_.is_number_integer() ||
        (json_.is_number_unsigned() && json_.get<uint64_t>() > static_cast<uint64_t>(most)) ||
        json_.get<int64_t>() < least || json_.get<int64_t>() > most)
      wrong(fmt::format("is no whole number from {} to {}", least, most));
    return json_.get<int64_t>();
  }
  double real(double least, double most) const {
    if (!json_.is_number() || !(json_.get<double>() >= least) || !(json_.get<double>() <= most))
      wrong(fmt::format("is no number from {} to {}", least, most));
    return json_.get<double>();
  }

  // ---- Its members

  JsonNode operator[](const char* key) const {
    object();
    const auto found = json_.find(key);
    if (found == json_.end()) malformed(fmt::format("has no member '{}'", key));
    return {*found, origin_, path_of(key)};
  }
  JsonNode operator[](size_t index) const {
    if (!json_.is_array() || index >= json_.size())
      malformed(fmt::format("is no list of {}", index + 1));
    return {json_[index], origin_, fmt::format("{}[{}]", path_, index)};
  }
  // Whether the object has such a member that is not null.
  bool has(const char* key) const {
    object();
    const auto found = json_.find(key);
    return found != json_.end() && !found->is_null();
  }
  int64_t whole_or(const char* key, int64_t least, int64_t most, int64_t otherwise) const {
    return has(key) ? (*this)[key].whole(least, most) : otherwise;
  }
  double real_or(const char* key, double least, double most, double otherwise) const {
    return has(key) ? (*this)[key].real(least, most) : otherwise;
  }
  bool flag_or(const char* key, bool otherwise) const {
    return has(key) ? (*this)[key].flag() : otherwise;
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    return has(key) ? (*this)[key].text() : otherwise;
  }
  // Refuses a member whose value is not the one that Amur computes; an absent one has it.
  void only(const char* key, const Json& value) const {
    if (has(key) && json_[key] != value)
      refuse(key, fmt::format("it must be {} or left out", value.dump()));
  }

  // ---- What is wrong

  // The file is not what it should be.
  [[noreturn]] void malformed(const std::string& what) const {
    throw IoError("{}: {} {}", origin_, path_.empty() ? "the file" : path_, what);
  }
  // It is, but Amur does not do what it asks for.
  [[noreturn]] void refuse(const std::string& wanted) const {
    throw UsageError("{}: {} is {}, which is not supported: {}", origin_,
                     path_.empty() ? "the file" : path_, shown(json_), wanted);
  }
  // The same of a member, which may be absent.
  [[noreturn]] void refuse(const char* key, const std::string& wanted) const {
    if (has(key)) (*this)[key].refuse(wanted);
    throw UsageError("{}: {} is left out, which is not supported: {}", origin_, path_of(key),
                     wanted);
  }

 private:
  JsonNode(const Json& json, std::string origin, std::string path)
      : json_(json), origin_(std::move(origin)), path_(std::move(path)) {}

  [[noreturn]] void wrong(const std::string& what) const {
    malformed(fmt::format("{}: {}", what, shown(json_)));
  }
  std::string path_of(const char* key) const {
    return path_.empty() ? key : fmt::format("{}.{}", path_, key);
  }
  // As it stands in the file, cut where it is long.
  static std::string shown(const Json& json) {
    constexpr size_t kLongest = 80;
    std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > kLongest) {
      text.resize(kLongest);
      text += "...";
    }
    return text;
  }

  const Json& json_;
  std::string origin_, path_;
};

}  // namespace amur
