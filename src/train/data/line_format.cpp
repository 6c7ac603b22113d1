#include "src/train/data/line_format.h"

#include <nlohmann/json.hpp>

#include "src/core/error.h"
#include "src/train/data/pair_source.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

std::string parse_tsv(std::string_view line, RawSample& sample) {
  for (int column = 0;; ++column) {
    const size_t tab = line.find('\t');
    const std::string_view field = trimmed(line.substr(0, tab));
    if (column == 0) {
      if (tab == std::string_view::npos) return "no tab between query and document";
      if (field.empty()) return "the query is empty";
      sample.query = field;
    } else if (column == 1) {
      if (field.empty()) return "the document is empty";
      sample.positives.emplace_back(field);
    } else if (!field.empty()) {
      sample.negatives.emplace_back(field);
    }
    if (tab == std::string_view::npos) return "";
    line.remove_prefix(tab + 1);
  }
}

// The member under either of its names; null if there is none.
const Json* member(const Json& object, const char* name, const char* other) {
  for (const char* key : {name, other})
    if (const auto found = object.find(key); found != object.end()) return &*found;
  return nullptr;
}

std::string add_text(const Json& value, const char* name, std::vector<std::string>& texts) {
  if (!value.is_string()) return fmt::format("\"{}\" is neither a text nor a list of texts", name);
  const std::string_view text = trimmed(value.get_ref<const std::string&>());
  if (text.empty()) return fmt::format("a text of \"{}\" is empty", name);
  texts.emplace_back(text);
  return "";
}

std::string add_texts(const Json& value, const char* name, std::vector<std::string>& texts) {
  if (!value.is_array()) return add_text(value, name, texts);
  for (const Json& item : value)
    if (std::string reason = add_text(item, name, texts); !reason.empty()) return reason;
  return "";
}

std::string parse_jsonl(std::string_view line, RawSample& sample) {
  const Json object = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return "not a JSON object";
  const Json* query = member(object, "query", "anchor");
  const Json* positives = member(object, "pos", "positive");
  const Json* negatives = member(object, "neg", "negative");
  if (query == nullptr) return "neither \"query\" nor \"anchor\"";
  if (positives == nullptr) return "neither \"pos\" nor \"positive\"";
  if (!query->is_string()) return "the query is not a text";
  sample.query = trimmed(query->get_ref<const std::string&>());
  if (sample.query.empty()) return "the query is empty";
  if (std::string reason = add_texts(*positives, "pos", sample.positives); !reason.empty())
    return reason;
  if (sample.positives.empty()) return "no positives";
  if (negatives == nullptr || negatives->is_null()) return "";
  return add_texts(*negatives, "neg", sample.negatives);
}

}  // namespace

std::string parse_line(SourceFormat format, std::string_view line, RawSample& sample) {
  sample.query.clear();
  sample.positives.clear();
  sample.negatives.clear();
  if (!is_utf8(line)) return "not UTF-8";
  return format == SourceFormat::jsonl ? parse_jsonl(line, sample) : parse_tsv(line, sample);
}

bool is_blank(std::string_view line) {
  return trimmed(line).empty();
}

bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    size_t length = 0;
    unsigned char low = 0x80, high = 0xbf;  // of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) {
      length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      length = 3;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      length = 4;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    if (text.size() - i < length || byte(i + 1) < low || byte(i + 1) > high) return false;
    for (size_t k = 2; k < length; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return false;
    i += length;
  }
  return true;
}

std::string_view line_at(std::string_view text, size_t offset) {
  std::string_view line = text.substr(offset, text.find('\n', offset) - offset);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace amur
