#include "src/train/growth/widen.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "comm/runtime.h"
#include "src/core/log.h"
#include "src/train/growth/grow_model.h"
#include "src/train/session.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

const char* split_name(GrowthSplit split) {
  switch (split) {
    case GrowthSplit::even:
      return "even";
    case GrowthSplit::noise:
      return "noise";
    case GrowthSplit::uneven:
      return "uneven";
  }
  return "?";
}

// A vocabulary that begins with all tokens of the old one.
std::unique_ptr<Tokenizer> larger_vocabulary(const std::string& path, const Tokenizer& old) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError("--vocab: cannot open '{}'", path);
  std::unique_ptr<Tokenizer> larger =
      Tokenizer::from_bytes({std::istreambuf_iterator<char>(file), {}}, path);
  if (std::string_view(larger->kind()) != old.kind() || larger->vocab_size() < old.vocab_size())
    throw UsageError("--vocab: '{}' has {} tokens of {}, the checkpoint {} of {}", path,
                     larger->vocab_size(), larger->kind(), old.vocab_size(), old.kind());
  for (int64_t id = 0; id < old.vocab_size(); ++id) {
    const std::vector<int32_t> one{static_cast<int32_t>(id)};
    if (larger->decode(one) != old.decode(one))
      throw UsageError(
          "--vocab: token {} of '{}' is '{}', in the checkpoint it is '{}'; a larger "
          "vocabulary begins with all the old tokens",
          id, path, larger->decode(one), old.decode(one));
  }
  return larger;
}

Json sizes_of(const ModelConfig& m) {
  return {{"hidden", m.hidden},
          {"heads", m.heads},
          {"head_size", m.resolved_head_size()},
          {"ffn", m.resolved_ffn()},
          {"layers", m.layers},
          {"vocab", m.vocab},
          {"max_length", m.max_length},
          {"projection", m.projection}};
}

std::string lineage_of(const WidenOptions& options, const Growth& growth, int64_t step,
                       const WidenResult& result) {
  Json j{{"widened_from", options.input},
         {"step", step},
         {"from", sizes_of(growth.from())},
         {"to", sizes_of(growth.to())},
         {"parameters_before", result.parameters_before},
         {"parameters_after", result.parameters_after},
         {"split", split_name(growth.options().split)},
         {"seed", growth.options().seed}};
  if (growth.options().split == GrowthSplit::noise) j["noise_db"] = growth.options().noise_db;
  if (growth.options().old_statistics) j["old_statistics"] = true;
  j["fixed_projection"] = growth.to().projection != growth.from().projection;
  j["proof"] = Json::parse(to_json(result.proof));
  return j.dump();
}

int64_t bytes_of(std::span<const OptimizerSlot> slots) {
  int64_t bytes = 0;
  for (const OptimizerSlot& slot : slots) bytes += static_cast<int64_t>(slot.value.bytes());
  return bytes;
}

void add_plan(const Growth& growth, EmbeddingModel& from, EmbeddingModel& to, WidenResult& result) {
  result.warnings = growth.warnings();
  result.parameters_before = from.parameters().global_elements();
  result.parameters_after = to.parameters().global_elements();
  for (const Parameter& p : to.parameters()) {
    const GrowthRule rule = growth.rule(p, from.parameters());
    TensorPlan plan;
    plan.name = p.name;
    plan.after = p.global_shape().text();
    if (!rule.source.empty())
      plan.before = from.parameters().find(rule.source)->global_shape().text();
    plan.rule = rule.text;
    plan.elements = p.global_elements();
    result.plan.push_back(std::move(plan));
  }
}

void write_config(const std::string& path, const std::string& yaml) {
  std::ofstream file(path);
  file << yaml;
  file.close();
  if (!file) throw IoError("cannot write '{}'", path);
}

}  // namespace

WidenResult widen(const WidenOptions& options, CommBackend backend, Runtime& runtime) {
  runtime.set_phase("reading the checkpoint");
  const std::string input = resolve_checkpoint(options.input);
  const Config saved = parse_config(Checkpoint::read_info(input).config_yaml, input, {});
  // In the precision of the parameters; whole tensors on every rank, as of any checkpoint.
  std::vector<std::string> overrides;
  if (saved.train.precision == Precision::bf16) overrides.emplace_back("train.precision=fp32");
  if (saved.parallel.sync_precision == SyncPrecision::bf16)
    overrides.emplace_back("parallel.sync_precision=fp32");
  const auto grid = start_grid(checkpoint_config(input, overrides), backend, runtime);
  TrainedModel old = load_trained_model(input, overrides, *grid);

  std::unique_ptr<Tokenizer> vocabulary;
  GrowthOptions growth_options = options.growth;
  if (!options.vocabulary.empty()) {
    vocabulary = larger_vocabulary(options.vocabulary, *old.tokenizer);
    growth_options.vocab = vocabulary->vocab_size();
  }
  const Growth growth(old.config.model, growth_options);
  if (growth.changes_nothing() && !options.plan_only)
    throw UsageError(
        "nothing to widen: give at least one of --hidden --heads --head-size --ffn "
        "--layers --positions --vocab with a larger size; --plan shows what there is");
  const Config new_config = grown_config(old.config, growth);
  EmbeddingModel grown(new_config, old.config.train.precision);
  WidenResult result;
  add_plan(growth, *old.model, grown, result);

  Checkpoint::load_rules(input, old.model->parameters(), *grid);
  grown.initialise(old.info.seed);
  widen_model(growth, *old.model, grown);
  const auto old_optimizer = Optimizer::make(old.config.optimizer, old.model->parameters());
  const auto new_optimizer = Optimizer::make(new_config.optimizer, grown.parameters());
  const std::vector<OptimizerSlot> old_slots = old_optimizer->slots(),
                                   new_slots = new_optimizer->slots();
  const auto element = static_cast<double>(size_of(grown.parameters_dtype()));
  result.file_bytes = static_cast<double>(result.parameters_after) * element +
                      static_cast<double>(bytes_of(new_slots));
  result.memory_bytes = result.file_bytes +
                        static_cast<double>(result.parameters_before) * element +
                        static_cast<double>(bytes_of(old_slots));
  if (options.plan_only) return result;
  Log::info("both models with their state take {:.1f} MB on each rank", result.memory_bytes * 1e-6);
  Checkpoint::load(input, old.model->parameters(), old_slots, *grid);
  widen_state(growth, *old.model, old_slots, new_slots);

  runtime.set_phase("comparing the two models");
  const ProbePairs probe = probe_pairs(options.probe);
  const auto embedded = [&](EmbeddingModel& model) {
    return embed_probe(model, *old.tokenizer, old.config, probe, grid->dp(), runtime);
  };
  const ProbeEmbeddings before = embedded(*old.model), after = embedded(grown);
  result.proof = compare_embeddings(before, after, grown.parameters_dtype());
  if (!result.proof.pass()) return result;

  runtime.set_phase("writing the checkpoint");
  CheckpointInfo info = old.info;
  Config written = grown_config(saved, growth);
  info.config_yaml = to_yaml(written);
  info.constants = grown.constants();
  if (vocabulary) info.tokenizer = {{vocabulary->kind(), vocabulary->serialised()}};
  info.lineage.push_back(lineage_of(options, growth, info.step, result));
  Checkpoint::save(options.output, info, grown.parameters(), new_slots,
                   static_cast<int>(saved.checkpoint.compression), *grid);
  if (!options.config_output.empty() && runtime.rank() == 0)
    write_config(options.config_output, info.config_yaml);
  result.written = true;
  return result;
}

std::string to_text(const WidenResult& result, const WidenOptions& options) {
  std::string out;
  if (options.plan_only) {
    size_t name = 6, shapes = 6;
    const auto shapes_of = [](const TensorPlan& t) {
      return t.before.empty() ? fmt::format("-> {}", t.after)
                              : fmt::format("{} -> {}", t.before, t.after);
    };
    for (const TensorPlan& t : result.plan) {
      name = std::max(name, t.name.size());
      shapes = std::max(shapes, shapes_of(t).size());
    }
    out += fmt::format("{:<{}}  {:<{}}  rule\n", "tensor", name, "shapes", shapes);
    for (const TensorPlan& t : result.plan)
      out += fmt::format("{:<{}}  {:<{}}  {}\n", t.name, name, shapes_of(t), shapes, t.rule);
  }
  out += fmt::format(
      "parameters: {} -> {}; tensors of the new file: {:.1f} MB; memory: {:.1f} MB "
      "on each rank\n",
      result.parameters_before, result.parameters_after, result.file_bytes * 1e-6,
      result.memory_bytes * 1e-6);
  for (const std::string& warning : result.warnings) out += fmt::format("note: {}\n", warning);
  if (options.plan_only) return out;
  out += to_text(result.proof);
  out += result.written ? fmt::format("the same function; written to {}\n", options.output)
                        : fmt::format("ANOTHER FUNCTION; {} was not written\n", options.output);
  return out;
}

std::string to_json(const WidenResult& result, const WidenOptions& options) {
  Json j{{"input", options.input},
         {"output", options.output},
         {"written", result.written},
         {"parameters_before", result.parameters_before},
         {"parameters_after", result.parameters_after},
         {"file_bytes", result.file_bytes},
         {"memory_bytes", result.memory_bytes},
         {"warnings", result.warnings}};
  j["tensors"] = Json::array();
  for (const TensorPlan& t : result.plan)
    j["tensors"].push_back(
        {{"name", t.name}, {"before", t.before}, {"after", t.after}, {"rule", t.rule}});
  if (!options.plan_only) j["proof"] = Json::parse(to_json(result.proof));
  return j.dump(2);
}

}  // namespace amur
