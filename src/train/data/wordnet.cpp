// WordNet 3.0 of Debian's wordnet-base as a reverse dictionary: definition -> words.
#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>

#include "src/core/error.h"
#include "src/train/data/package_source.h"

namespace amur {
namespace {

// An entry: part of speech (2 bits), offset of the line (46 bits), bytes (16).
constexpr std::array<const char*, 4> kPartsOfSpeech = {"noun", "verb", "adj", "adv"};
constexpr int kPartShift = 62;
constexpr uint64_t kOffsetMask = (uint64_t{1} << 46) - 1;

std::string_view next_field(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  const std::string_view field = text.substr(0, text.find_first_of(" \t"));
  text.remove_prefix(field.size());
  return field;
}

std::string utf8_of_latin1(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      result.push_back(c);
    } else {
      result.push_back(static_cast<char>(0xc0 | byte >> 6));
      result.push_back(static_cast<char>(0x80 | (byte & 0x3f)));
    }
  }
  return result;
}

// The gloss up to its first quoted example, i.e. up to `;` or `:`, white space, `"`.
std::string_view definition_of(std::string_view gloss) {
  gloss = trimmed(gloss);
  for (size_t i = 0; i < gloss.size(); ++i) {
    const char c = gloss[i];
    const bool quote_follows =
        (c == ';' || c == ':') && trimmed(gloss.substr(i + 1)).starts_with('"');
    if (!quote_follows) continue;
    gloss = gloss.substr(0, i);
    break;
  }
  gloss = trimmed(gloss);
  while (gloss.starts_with(';')) gloss.remove_prefix(1);
  while (gloss.ends_with(';')) gloss.remove_suffix(1);
  return trimmed(gloss);
}

std::string word_of(std::string_view lemma) {
  for (const std::string_view marker : {"(a)", "(p)", "(ip)"}) {
    if (!lemma.ends_with(marker)) continue;
    lemma.remove_suffix(marker.size());
    break;
  }
  std::string word(lemma);
  std::replace(word.begin(), word.end(), '_', ' ');
  return word;
}

class WordNet final : public PackageSource {
 public:
  WordNet(const SourceConfig& source, Split eval_split) : PackageSource("wordnet", eval_split) {
    const std::filesystem::path folder =
        source.path.empty() ? "/usr/share/wordnet" : source.path.c_str();
    for (size_t part = 0; part < kPartsOfSpeech.size(); ++part) {
      paths_.push_back(folder / (std::string("data.") + kPartsOfSpeech[part]));
      try {
        texts_[part] = TextBytes::open(paths_.back());
      } catch (const IoError& error) {
        throw IoError(
            "{}; install the Debian package wordnet-base or name the folder of its data "
            "files in data.sources[].path",
            error.what());
      }
    }
    build_index();
  }

  std::vector<std::string> files() const override { return paths_; }
  void release() const override {
    for (const TextBytes& text : texts_) text.release();
  }

  void rows(const Visit& visit) const override {
    for (size_t part = 0; part < kPartsOfSpeech.size(); ++part) {
      const std::string_view text = texts_[part].view();
      for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        Row row;
        const std::string_view line = text.substr(at, end - at);
        // The licence at the head of each file is indented.
        if (!line.starts_with("  ") && parse(line, paths_[part], row)) {
          row.split = split_of(kPartsOfSpeech[part] + std::string(line.substr(0, line.find(' '))));
          row.entry = uint64_t{part} << kPartShift | uint64_t{at} << 16 |
                      std::min<uint64_t>(row.query.size() + row.document.size(), 0xffff);
          visit(row);
        }
        at = end + 1;
      }
    }
  }

 private:
  // offset file type count(hexadecimal) { lemma id } ... | gloss
  static bool parse(std::string_view line, const std::string& path, Row& row) {
    const size_t bar = line.find(" | ");
    std::string_view head = line.substr(0, bar);
    next_field(head), next_field(head), next_field(head);
    const std::string_view digits = next_field(head);
    int count = 0;
    const auto [end, status] =
        std::from_chars(digits.data(), digits.data() + digits.size(), count, 16);
    if (status != std::errc() || end != digits.data() + digits.size() || count < 1)
      throw UsageError("{} is not a WordNet data file: it has the line '{}'", path,
                       line.substr(0, 60));
    std::string words;
    for (int i = 0; i < count; ++i) {
      if (i > 0) words += ", ";
      words += word_of(next_field(head));
      next_field(head);
    }
    row.document = utf8_of_latin1(words);
    if (bar != std::string_view::npos)
      row.query = utf8_of_latin1(definition_of(line.substr(bar + 3)));
    return !row.query.empty();
  }

  RawSample read(uint64_t entry) const override {
    const size_t part = entry >> kPartShift;
    const std::string_view text = texts_[part].view().substr(entry >> 16 & kOffsetMask);
    Row row;
    const bool valid = parse(text.substr(0, text.find('\n')), paths_[part], row);
    AMUR_CHECK(valid, "{} changed while it was in use", paths_[part]);
    RawSample sample;
    sample.query = std::move(row.query);
    sample.positives.push_back(std::move(row.document));
    return sample;
  }

  std::vector<std::string> paths_;
  std::array<TextBytes, kPartsOfSpeech.size()> texts_;
};

}  // namespace

std::unique_ptr<PackageSource> open_wordnet(const SourceConfig& source, Split eval_split) {
  return std::make_unique<WordNet>(source, eval_split);
}

}  // namespace amur
