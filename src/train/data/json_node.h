// A value in a JSON file from elsewhere, which knows its place: messages name file and option.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "src/core/error.h"

namespace amur {

class JsonNode {
 public:
  using Json = nlohmann::json;

  // IoError where the bytes are no JSON, or are nested deeper than any such file is.
  static Json parse(std::string_view bytes, const std::string& origin) {
    constexpr int kDeepest = 64;
    const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
      if (depth > kDeepest) throw IoError("{} is nested deeper than {}", origin, kDeepest);
      return true;
    };
    try {
      return Json::parse(bytes.begin(), bytes.end(), shallow);
    } catch (const Json::exception& error) {
      throw IoError("{} is not JSON: {}", origin, error.what());
    }
  }

  JsonNode(const Json& json, std::string origin) : json_(json), origin_(std::move(origin)) {}

  const Json& json() const { return json_; }
  // "normalizer.lowercase", as messages have it behind the file's name.
  const std::string& path() const { return path_; }

  bool is_null() const { return json_.is_null(); }
  // Whether the object has such a member that is not null.
  bool has(const char* key) const {
    object();
    const auto found = json_.find(key);
    return found != json_.end() && !found->is_null();
  }
  JsonNode operator[](const char* key) const {
    object();
    const auto found = json_.find(key);
    if (found == json_.end()) malformed(fmt::format("has no member '{}'", key));
    return {*found, origin_, path_.empty() ? key : fmt::format("{}.{}", path_, key)};
  }
  JsonNode operator[](size_t index) const {
    if (!json_.is_array() || index >= json_.size())
      malformed(fmt::format("is no list of {}", index + 1));
    return {json_[index], origin_, fmt::format("{}[{}]", path_, index)};
  }
  size_t list_size() const {
    if (!json_.is_array()) malformed("is no list");
    return json_.size();
  }
  const Json::object_t& object() const {
    if (!json_.is_object()) malformed("is no object");
    return json_.get_ref<const Json::object_t&>();
  }
  const std::string& text() const {
    if (!json_.is_string()) malformed("is no text");
    return json_.get_ref<const std::string&>();
  }
  bool flag() const {
    if (!json_.is_boolean()) malformed("is neither true nor false");
    return json_.get<bool>();
  }
  int64_t whole(int64_t most) const {
    if (!json_.is_number_unsigned() || json_.get<uint64_t>() > static_cast<uint64_t>(most))
      malformed(fmt::format("is no whole number up to {}", most));
    return json_.get<int64_t>();
  }

  // The file is not what it should be.
  [[noreturn]] void malformed(const std::string& what) const {
    throw IoError("{}: {} {}", origin_, path_.empty() ? "the file" : path_, what);
  }
  // It is, but Amur does not do what it asks for.
  [[noreturn]] void refuse(const std::string& wanted) const {
    std::string value = json_.dump();
    constexpr size_t kLongest = 80;
    if (value.size() > kLongest) {
      value.resize(kLongest);
      value += "...";
    }
    throw UsageError("{}: {} is {}, which is not supported: {}", origin_, path_, value, wanted);
  }

 private:
  JsonNode(const Json& json, std::string origin, std::string path)
      : json_(json), origin_(std::move(origin)), path_(std::move(path)) {}

  const Json& json_;
  std::string origin_, path_;
};

}  // namespace amur
