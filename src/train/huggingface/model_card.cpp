// README.md of an exported folder.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "src/core/version.h"
#include "src/train/huggingface/export_files.h"
#include "src/train/json_reader.h"

namespace amur {
namespace {

const char* name_of_format(SourceFormat format) {
  switch (format) {
    case SourceFormat::trans_de_en:
      return "trans-de-en (German and English dictionary entries)";
    case SourceFormat::wordnet:
      return "WordNet (definitions and words)";
    case SourceFormat::tsv:
      return "pairs (TSV)";
    case SourceFormat::jsonl:
      return "pairs (JSONL)";
    case SourceFormat::none:
      return "";
  }
  return "";
}

const char* name_of_optimizer(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::tiger:
      return "Tiger";
    case OptimizerKind::adamw:
      return "AdamW";
    case OptimizerKind::lion:
      return "Lion";
  }
  return "";
}

// "organisation/model", as the hub calls one.
bool is_hub_name(const std::string& name) {
  const size_t slash = name.find('/');
  return slash != 0 && slash != std::string::npos && slash + 1 < name.size() &&
         std::all_of(name.begin(), name.end(), [&](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '-' || c == '_' || &c == &name[slash];
         });
}

// In quotes, as Python and YAML write text.
std::string quoted(const std::string& text) {
  return OrderedJson(text).dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

struct Card {
  const ExportedModel& m;
  std::string out;

  template <class... A>
  void line(fmt::format_string<A...> format, A&&... a) {
    out += fmt::format(format, std::forward<A>(a)...) + "\n";
  }

  std::string base_model() const {
    for (const std::string& entry : m.info.lineage) {
      const OrderedJson json = OrderedJson::parse(entry, nullptr, false);
      if (json.is_object() && json.value("base_model", OrderedJson()).is_string())
        return json["base_model"].get<std::string>();
    }
    return "";
  }

  void head() {
    line("---");
    line("library_name: sentence-transformers");
    line("pipeline_tag: sentence-similarity");
    if (const std::string base = base_model(); is_hub_name(base)) line("base_model: {}", base);
    line("tags:");
    for (const char* tag : {"sentence-transformers", "sentence-similarity", "feature-extraction"})
      line("- {}", tag);
    line("---\n");
    line("# Text embedding model\n");
    const ModelConfig& c = m.encoder.model;
    const int64_t width = c.embedding_size();
    line("Maps texts to unit vectors of {} numbers, compared by their cosine.", width);
    line("Trained and exported by Amur {}.\n", kVersion);
    line("## Model\n");
    line("| | |\n| --- | --- |");
    line("| class | {} |", name_of(m.encoder.kind));
    if (const std::string base = base_model(); !base.empty()) line("| base model | {} |", base);
    line("| parameters | {} |", m.parameters);
    line("| layers, width, heads, feed-forward | {}, {}, {}, {} |", c.layers, c.hidden,
         c.layers > 0 ? c.heads : 0, c.layers > 0 ? c.resolved_ffn() : 0);
    if (c.layers > 0) line("| attention | {} |", c.attention_text());
    line("| tokens of a text | at most {} |", m.config.model.max_length);
    line("| pooling | {} |", c.pooling == PoolingKind::cls ? "first token" : "mean");
    if (c.projection > 0) line("| projection | to {} |", c.projection);
    line("");
  }

  void use() {
    const bool prompts =
        !m.config.data.sources.empty() && (!m.config.data.sources[0].query_prefix.empty() ||
                                           !m.config.data.sources[0].document_prefix.empty());
    line("## Use\n");
    line("```python");
    line("from sentence_transformers import SentenceTransformer\n");
    line("model = SentenceTransformer(\"path/of/this/folder\")");
    line("queries = model.encode{}([\"a question\"])", prompts ? "_query" : "");
    line("documents = model.encode{}([\"a text\", \"another text\"])", prompts ? "_document" : "");
    line("print(queries @ documents.T)");
    line("```\n");
    if (!prompts) return;
    line(
        "Put before queries: {}, before documents: {} (the prompts of "
        "`config_sentence_transformers.json` do it).\n",
        quoted(m.config.data.sources[0].query_prefix),
        quoted(m.config.data.sources[0].document_prefix));
  }

  void training() {
    line("## Training\n");
    if (m.info.step == 0) {
      line("Not trained further.\n");
      return;
    }
    const Config& c = m.config;
    std::string data;
    for (const SourceConfig& s : c.data.sources) {
      const std::string file = std::filesystem::path(s.path).filename().string();
      data += fmt::format("{}{}{}", data.empty() ? "" : "; ", name_of_format(s.format),
                          file.empty() ? "" : fmt::format(" {}", file));
    }
    line("| | |\n| --- | --- |");
    line("| data | {} |", data);
    line("| steps, pairs seen | {}, {} |", m.info.step, m.info.position.samples_seen);
    line("| batch | {} pairs, exact in-batch negatives |", c.train.batch_size);
    line("| loss | {} |", c.loss.kind == LossKind::siglip ? "SigLIP" : "InfoNCE");
    line("| optimizer | {}, learning rate {}, weight decay {} |",
         name_of_optimizer(c.optimizer.kind), c.optimizer.learning_rate, c.optimizer.weight_decay);
    line("| seed | {} |\n", m.info.seed);
  }

  void metrics() {
    if (m.info.best.empty()) return;
    line("## Metrics\n");
    line("The best evaluation of the run, on its held-out pairs.\n");
    line("| metric | value |\n| --- | --- |");
    for (const auto& [name, value] : m.info.best)
      line(
          "| {} | {} |", name,
          value == std::floor(value) ? fmt::format("{:.0f}", value) : fmt::format("{:.4f}", value));
    line("");
  }

  void lineage() {
    if (m.info.lineage.empty()) return;
    line("## Lineage\n");
    line("What it came from and grew from, oldest first.\n");
    line("```json");
    for (const std::string& entry : m.info.lineage) line("{}", entry);
    line("```");
  }
};

}  // namespace

std::string model_card(const ExportedModel& model) {
  Card card{model, {}};
  card.head();
  card.use();
  card.training();
  card.metrics();
  card.lineage();
  return card.out;
}

}  // namespace amur
