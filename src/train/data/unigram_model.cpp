// Unigram vocabularies as XLM-RoBERTa has them: SentencePiece's table of replacements, words behind
// U+2581, and the segmentation of highest score (tokenizers 0.23, src/models/unigram/).
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "src/core/error.h"
#include "src/train/data/precompiled_normalizer.h"
#include "src/train/data/text_model.h"
#include "src/train/data/unigram_lattice.h"
#include "src/train/data/utf8.h"

namespace amur {
namespace {

constexpr std::string_view kSpace = "\u2581";

// One step of the normalizer: a table, or `pattern` replaced by `content` (several blanks by one
// where `blanks`).
struct NormalizerStep {
  std::optional<PrecompiledNormalizer> table;
  bool blanks = false;
  std::string pattern, content;
};

void apply(const NormalizerStep& step, std::string& text) {
  std::string out;
  if (step.table) {
    step.table->append(text, out);
  } else if (step.blanks) {
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find_first_not_of(' ', at), text.size());
      if (end - at > 1)
        out += step.content;
      else
        out += text[at];
      at = std::max(end, at + 1);
    }
  } else {
    for (size_t at = 0; at < text.size();) {
      const size_t found = std::min(text.find(step.pattern, at), text.size());
      out.append(text, at, found - at);
      if (found < text.size()) out += step.content;
      at = found + step.pattern.size();
    }
  }
  text = std::move(out);
}

struct UnigramOptions {
  std::vector<NormalizerStep> normalizer;
  bool parts_at_spaces = false;  // WhitespaceSplit
  bool begins_with_space = true, splits = true;
  bool has_decoder = false;
  int32_t unknown_id = 0;
  std::vector<int32_t> byte_ids;  // of <0x00> to <0xFF>, or none
};

class UnigramModel final : public TextModel {
 public:
  UnigramModel(UnigramOptions options, const std::vector<UnigramLattice::Piece>& pieces)
      : options_(std::move(options)), lattice_(pieces) {}

  TokenizerKind kind() const override { return TokenizerKind::unigram; }
  int32_t unknown_id() const override { return options_.unknown_id; }

  void normalise(std::string_view text, std::string& normal) const override {
    std::string steps = valid_utf8(text);
    for (const NormalizerStep& step : options_.normalizer) apply(step, steps);
    normal += steps;
  }

  bool encode(std::string_view normal, TokenOutput& out) const override {
    if (!options_.parts_at_spaces) return add_part(normal, out);
    size_t start = 0;
    for (size_t at = 0; at < normal.size();) {
      const size_t first = at;
      if (!is_white_space(next_character(normal, at))) continue;
      if (start < first && !add_part(normal.substr(start, first - start), out)) return false;
      start = at;
    }
    return start == normal.size() || add_part(normal.substr(start), out);
  }

  std::string decode(const std::vector<std::string>& tokens) const override {
    std::string text;
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string token = tokens[i];
      if (options_.has_decoder) {
        for (size_t at = 0; (at = token.find(kSpace, at)) != std::string::npos;)
          token.replace(at, kSpace.size(), 1, ' ');
        if (i == 0 && options_.begins_with_space && token.starts_with(' ')) token.erase(0, 1);
      } else if (i > 0) {
        text += ' ';
      }
      text += token;
    }
    return text;
  }

 private:
  // Metaspace.
  bool add_part(std::string_view part, TokenOutput& out) const {
    std::string text;
    if (options_.begins_with_space && !part.empty() && part[0] != ' ' && !part.starts_with(kSpace))
      text.append(kSpace);
    for (const char c : part)
      if (c == ' ')
        text += kSpace;
      else
        text += c;
    std::string_view rest = text;
    while (!rest.empty()) {
      const size_t end = options_.splits ? rest.find(kSpace, 1) : std::string_view::npos;
      if (!add_piece(rest.substr(0, end), out)) return false;
      rest.remove_prefix(std::min(end, rest.size()));
    }
    return true;
  }

  bool add_piece(std::string_view text, TokenOutput& out) const {
    const std::vector<UnigramLattice::Part> parts = lattice_.best(text);
    for (size_t i = 0; i < parts.size();) {
      if (!is_unknown(parts[i])) {
        if (!out.add(parts[i++].id)) return false;
        continue;
      }
      // A run of unknown characters is one token, or its bytes are.
      const size_t first = i;
      while (i < parts.size() && is_unknown(parts[i])) ++i;
      const bool named = i - first == 1 && parts[first].id == options_.unknown_id;
      if (options_.byte_ids.empty() || named) {
        if (!out.add(options_.unknown_id)) return false;
        continue;
      }
      const size_t end = parts[i - 1].first + parts[i - 1].length;
      for (const char c : text.substr(parts[first].first, end - parts[first].first))
        if (!out.add(options_.byte_ids[static_cast<unsigned char>(c)])) return false;
    }
    return true;
  }

  bool is_unknown(const UnigramLattice::Part& part) const {
    return part.id == UnigramLattice::kUnknown || part.id == options_.unknown_id;
  }

  UnigramOptions options_;
  UnigramLattice lattice_;
};

// ---- The file

void read_normalizer(const JsonNode& node, std::vector<NormalizerStep>& steps) {
  const std::string& type = node["type"].text();
  if (type == "Sequence") {
    const JsonNode list = node["normalizers"];
    for (size_t i = 0; i < list.list_size(); ++i) {
      if (list[i]["type"].text() == "Sequence")
        list[i]["type"].refuse("it must be no sequence again");
      read_normalizer(list[i], steps);
    }
    return;
  }
  NormalizerStep step;
  if (type == "Precompiled") {
    if (!node.has("precompiled_charsmap")) return;  // nothing is replaced
    const JsonNode table = node["precompiled_charsmap"];
    const std::string origin = fmt::format("the tokenizer.json's {}", table.path());
    const std::string bytes = decode_base64(table.text(), origin);
    if (bytes.empty()) return;
    step.table.emplace(bytes, origin);
  } else if (type == "Replace") {
    const JsonNode pattern = node["pattern"];
    step.content = node["content"].text();
    if (pattern.has("Regex")) {
      if (pattern["Regex"].text() != " {2,}")
        pattern["Regex"].refuse("the one that is read is \" {2,}\"");
      step.blanks = true;
    } else {
      step.pattern = pattern["String"].text();
      if (step.pattern.empty()) pattern["String"].malformed("is empty");
    }
  } else {
    node["type"].refuse("it must be Precompiled, Replace or a Sequence of them");
  }
  steps.push_back(std::move(step));
}

void read_metaspace(const JsonNode& node, UnigramOptions& options) {
  if (node["type"].text() != "Metaspace")
    node["type"].refuse("it must be Metaspace, or a Sequence of WhitespaceSplit and Metaspace");
  if (node["replacement"].text() != kSpace)
    node["replacement"].refuse("it must be the character U+2581");
  if (node.has("prepend_scheme")) {
    const std::string& scheme = node["prepend_scheme"].text();
    if (scheme != "always" && scheme != "never")
      node["prepend_scheme"].refuse("it must be \"always\" or \"never\"");
    options.begins_with_space = scheme == "always";
  } else if (node.has("add_prefix_space")) {
    options.begins_with_space = node["add_prefix_space"].flag();
  }
  options.splits = !node.has("split") || node["split"].flag();
}

void read_pre_tokenizer(const JsonNode& node, UnigramOptions& options) {
  if (node.is_null()) node.refuse("it must be Metaspace");
  if (node["type"].text() != "Sequence") return read_metaspace(node, options);
  const JsonNode list = node["pretokenizers"];
  if (list.list_size() != 2 || list[size_t{0}]["type"].text() != "WhitespaceSplit")
    list.refuse("a Sequence must be WhitespaceSplit and Metaspace");
  options.parts_at_spaces = true;
  read_metaspace(list[size_t{1}], options);
}

}  // namespace

ReadTextModel read_unigram_model(const JsonNode& root) {
  ReadTextModel read;
  UnigramOptions options;
  const JsonNode model = root["model"], list = model["vocab"];
  read.size = static_cast<int64_t>(list.list_size());
  if (read.size > kMostTokens) list.malformed(fmt::format("has more than {} pieces", kMostTokens));
  std::vector<UnigramLattice::Piece> pieces;
  for (const auto& entry : list.json()) {
    const auto id = static_cast<int64_t>(pieces.size());
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number() ||
        !std::isfinite(entry[1].get<double>()))
      list.malformed(fmt::format("[{}] is no piece and its score", id));
    const auto& text = entry[0].get_ref<const std::string&>();
    pieces.push_back({text, static_cast<int32_t>(id), entry[1].get<double>()});
    read.vocab.insert_or_assign(text, id);  // of equal ones the later counts, as there
  }
  options.unknown_id =
      static_cast<int32_t>(model["unk_id"].whole(0, std::max<int64_t>(read.size, 1) - 1));
  if (model.has("byte_fallback") && model["byte_fallback"].flag()) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = read.vocab.find(fmt::format("<0x{:02X}>", byte));
      if (found == read.vocab.end())
        model["byte_fallback"].refuse(
            fmt::format("the vocabulary has no piece <0x{:02X}>; all bytes are wanted", byte));
      options.byte_ids.push_back(static_cast<int32_t>(found->second));
    }
  }
  if (root.has("normalizer")) read_normalizer(root["normalizer"], options.normalizer);
  read_pre_tokenizer(root["pre_tokenizer"], options);
  if (root.has("decoder")) {
    const JsonNode type = root["decoder"]["type"];
    if (type.text() != "Metaspace") type.refuse("it must be Metaspace");
    options.has_decoder = true;
  }
  read.model = std::make_unique<UnigramModel>(std::move(options), pieces);
  return read;
}

}  // namespace amur
