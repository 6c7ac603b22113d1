#include "src/train/growth/widen.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "comm/runtime.h"
#include "src/core/log.h"
#include "src/core/process.h"
#include "src/train/growth/grow_checkpoint.h"
#include "src/train/session.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

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

// Decides how many ranks share a model while it is asked for the proof, so that it fits into what
// memory there is; tells how much that is. Collective.
int ranks_of_proof(double bytes, Communicator& world, const Runtime& runtime) {
  const auto available = static_cast<double>(-world.max(-static_cast<int64_t>(available_bytes())));
  const int64_t none = world.size() + 1;
  const int share = ranks_to_share(bytes, available, runtime.node_size(), runtime.size());
  const int64_t wanted = world.max(available == 0 ? 1 : share == 0 ? none : share);
  if (wanted == none)
    throw UsageError(
        "the proof needs {:.1f} MB for the weights of a model, and {:.1f} MB of memory are "
        "available. Take machines with more, or --no-proof: then the lineage says that nothing was "
        "compared (amur compare IN OUT does it later)",
        bytes * 1e-6, available * 1e-6);
  Log::info(
      "the proof takes {:.1f} MB for the weights of a model, one after the other, {}; {:.1f} MB "
      "are "
      "available",
      bytes * 1e-6,
      wanted == 1 ? std::string("on each rank") : fmt::format("shared by {} ranks", wanted),
      available * 1e-6);
  return static_cast<int>(wanted);
}

}  // namespace

WidenResult widen(const WidenOptions& options, CommBackend backend, Runtime& runtime) {
  runtime.set_phase("reading the checkpoint");
  const std::string input = resolve_checkpoint(options.input);
  const Config saved = parse_config(Checkpoint::read_info(input).config_yaml, input, {});
  // In the precision of the parameters.
  std::vector<std::string> overrides;
  if (saved.train.precision == Precision::bf16) overrides.emplace_back("train.precision=fp32");
  const bool state_was_bf16 = saved.optimizer.state != StatePrecision::fp32;
  if (state_was_bf16) overrides.emplace_back("optimizer.state=fp32");
  if (saved.parallel.sync_precision == SyncPrecision::bf16)
    overrides.emplace_back("parallel.sync_precision=fp32");
  Config config = checkpoint_config(input, overrides);
  const auto grid = start_grid(config, backend, runtime);
  CheckpointInfo info = Checkpoint::read_info(input, grid.get());
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(info, input);
  config.model.vocab = tokenizer->vocab_size();

  std::unique_ptr<Tokenizer> vocabulary;
  GrowthOptions growth_options = options.growth;
  if (!options.vocabulary.empty()) {
    vocabulary = larger_vocabulary(options.vocabulary, *tokenizer);
    growth_options.vocab = vocabulary->vocab_size();
  }
  const Growth growth(config.model, growth_options);
  if (options.proof_ranks > 0 && runtime.size() % options.proof_ranks != 0)
    throw UsageError("--proof-ranks {}: give a divisor of the number of ranks, {}",
                     options.proof_ranks, runtime.size());
  if (growth.changes_nothing() && !options.plan_only)
    throw UsageError(
        "nothing to widen: give at least one of --hidden --heads --head-size --ffn "
        "--layers --positions --vocab with a larger size; --plan shows what there is");
  GrownCheckpoint grown(input, info, config, growth, *grid, runtime);
  WidenResult result;
  add_plan(growth, grown.from(), grown.to(), result);
  if (state_was_bf16)
    result.warnings.emplace_back(
        "the weights in bf16 are widened as fp32, which is exact, and the new checkpoint has "
        "optimizer.state fp32; --set optimizer.state=bf16_weights rounds it where training goes "
        "on");
  result.file_bytes = static_cast<double>(grown.bytes_after());
  const double proof_bytes = static_cast<double>(result.parameters_after) *
                             static_cast<double>(size_of(grown.to().parameters_dtype()));
  result.memory_bytes = options.prove ? proof_bytes : 0;
  if (options.plan_only) return result;

  std::unique_ptr<ProcessGrid> sharing;
  if (options.prove) {
    const int share = options.proof_ranks > 0 ? static_cast<int>(options.proof_ranks)
                                              : ranks_of_proof(proof_bytes, grid->world(), runtime);
    config.model.require_shares(share);
    if (share > 1)
      sharing =
          std::make_unique<ProcessGrid>(runtime, GridShape{runtime.size() / share, share}, backend);
  }
  GrownCheckpoint::Content content;
  content.ancestor = ancestor_text(options.input, growth, info.step, result.parameters_before,
                                   result.parameters_after);
  content.info = std::move(info);
  Config written = grown_config(saved, growth);
  written.optimizer.state = config.optimizer.state;
  apply(options.schedule, content.info.step, written);
  content.info.config_yaml = to_yaml(written);
  if (vocabulary) content.info.tokenizer = {{vocabulary->kind(), vocabulary->serialised()}};
  content.file = file_options(saved.checkpoint);
  std::optional<ProbePairs> probe;
  if (options.prove) probe = probe_pairs(options.probe);
  const auto outcome =
      grown.grow(options.output, content, probe, *tokenizer, sharing ? *sharing : *grid);
  result.proof = outcome.proof;
  result.written = outcome.written;
  if (!result.written) return result;
  if (!options.config_output.empty() && runtime.rank() == 0)
    write_config(options.config_output, content.info.config_yaml);
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
  out += fmt::format("parameters: {} -> {}; tensors of the new file: {:.1f} MB",
                     result.parameters_before, result.parameters_after, result.file_bytes * 1e-6);
  out += options.prove
             ? fmt::format("; memory: {:.1f} MB on each rank\n", result.memory_bytes * 1e-6)
             : "\n";
  for (const std::string& warning : result.warnings) out += fmt::format("note: {}\n", warning);
  if (options.plan_only) return out;
  if (!result.proof)
    return out + fmt::format("not compared (--no-proof); written to {}\n", options.output);
  out += to_text(*result.proof);
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
  if (result.proof) j["proof"] = Json::parse(to_json(*result.proof));
  return j.dump(2);
}

}  // namespace amur
