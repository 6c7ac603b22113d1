// The Ding dictionary of Debian's trans-de-en: `german :: english`, groups at ` | `, alternatives
// at `;`, remarks in brackets. A pair is the first alternative of a group on either side.
#include <algorithm>
#include <array>

#include "src/core/error.h"
#include "src/train/data/package_source.h"

namespace amur {
namespace {

// An entry: offset of the line (32 bits), group (9), alternative of the German side (7), bytes
// (16).
constexpr uint64_t kMaxOffset = uint64_t{1} << 32, kMaxGroups = 1 << 9, kMaxAlternatives = 1 << 7;

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + separator.size());
  }
}

// `{...}`, `[...]`, `(...)`, `/.../` and `<...>` deleted, white space collapsed, both ends trimmed.
std::string without_remarks(std::string_view text) {
  constexpr std::string_view kOpen = "{[(/<", kClose = "}])/>";
  std::string kept;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t kind = kOpen.find(text[i]);
    if (kind != std::string_view::npos) {
      const size_t end = text.find(kClose[kind], i + 1);
      if (end != std::string_view::npos) {
        i = end;
        continue;
      }
    }
    kept.push_back(text[i]);
  }
  std::string result;
  for (const char c : kept) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space)
      result.push_back(c);
    else if (!result.empty() && result.back() != ' ')
      result.push_back(' ');
  }
  if (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}

// The alternatives of a group that are not empty, each once.
std::vector<std::string> alternatives(std::string_view group, bool only_first) {
  std::vector<std::string> found;
  for (const std::string_view part : split_at(group, ";")) {
    std::string text = without_remarks(part);
    if (text.empty() || std::find(found.begin(), found.end(), text) != found.end()) continue;
    found.push_back(std::move(text));
    if (only_first) break;
  }
  return found;
}

class TransDeEn final : public PackageSource {
 public:
  TransDeEn(const SourceConfig& source, Split eval_split)
      : PackageSource("trans-de-en", eval_split),
        path_(source.path.empty() ? "/usr/share/trans/de-en" : source.path),
        all_(source.all_alternatives) {
    try {
      text_ = TextBytes::open(path_);
    } catch (const IoError& error) {
      throw IoError(
          "{}; install the Debian package trans-de-en or name its file in "
          "data.sources[].path",
          error.what());
    }
    if (text_.view().size() >= kMaxOffset)
      throw UsageError("{} is larger than 4 GiB: not the trans-de-en dictionary", path_);
    build_index();
  }

  std::vector<std::string> files() const override { return {path_}; }
  void release() const override { text_.release(); }
  void rows(const Visit& visit) const override { scan(false, visit); }

 private:
  void index_rows(const Visit& visit) const override { scan(all_, visit); }

  // With `all`, one row for every German alternative instead of the first.
  void scan(bool all, const Visit& visit) const {
    const std::string_view text = text_.view();
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      scan_line(text.substr(at, end - at), at, all, visit);
      at = end + 1;
    }
  }

  void scan_line(std::string_view line, uint64_t offset, bool all, const Visit& visit) const {
    std::vector<std::string_view> german, english;
    if (!split_entry(line, german, english)) return;
    if (german.size() > kMaxGroups)
      throw UsageError("{}: the entry at byte {} has {} groups, more than {}", path_, offset,
                       german.size(), kMaxGroups);
    const Split split = split_of(line);
    for (size_t group = 0; group < german.size(); ++group) {
      const auto queries = alternatives(german[group], !all);
      const auto documents = alternatives(english[group], !all);
      if (queries.size() > kMaxAlternatives)
        throw UsageError("{}: a group of the entry at byte {} has {} alternatives, more than {}",
                         path_, offset, queries.size(), kMaxAlternatives);
      for (size_t alternative = 0; alternative < queries.size(); ++alternative) {
        const std::string& query = queries[alternative];
        size_t bytes = query.size();
        const std::string* first = nullptr;
        for (const std::string& document : documents) {
          if (folded(document) == folded(query)) continue;
          if (first == nullptr) first = &document;
          bytes = std::max(bytes, query.size() + document.size());
        }
        if (first == nullptr) continue;
        const uint64_t entry =
            offset << 32 | group << 23 | alternative << 16 | std::min<uint64_t>(bytes, 0xffff);
        visit({split, entry, query, *first});
      }
    }
  }

  static bool split_entry(std::string_view line, std::vector<std::string_view>& german,
                          std::vector<std::string_view>& english) {
    constexpr std::string_view kSides = " :: ";
    if (line.starts_with('#')) return false;
    const size_t middle = line.find(kSides);
    if (middle == std::string_view::npos) return false;
    german = split_at(line.substr(0, middle), " | ");
    english = split_at(line.substr(middle + kSides.size()), " | ");
    return german.size() == english.size();
  }

  RawSample read(uint64_t entry) const override {
    const std::string_view text = text_.view().substr(entry >> 32);
    std::vector<std::string_view> german, english;
    const bool valid = split_entry(text.substr(0, text.find('\n')), german, english);
    const size_t group = entry >> 23 & (kMaxGroups - 1);
    AMUR_CHECK(valid && group < german.size(), "{} changed while it was in use", path_);
    const auto queries = alternatives(german[group], !all_);
    RawSample sample;
    sample.query = queries.at(entry >> 16 & (kMaxAlternatives - 1));
    for (std::string& document : alternatives(english[group], !all_))
      if (folded(document) != folded(sample.query)) sample.positives.push_back(std::move(document));
    return sample;
  }

  std::string path_;
  bool all_;
  TextBytes text_;
};

}  // namespace

std::unique_ptr<PackageSource> open_trans_de_en(const SourceConfig& source, Split eval_split) {
  return std::make_unique<TransDeEn>(source, eval_split);
}

}  // namespace amur
