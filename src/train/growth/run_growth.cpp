#include "src/train/growth/run_growth.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "comm/runtime.h"
#include "src/core/log.h"
#include "src/train/config/config_schema.h"
#include "src/train/config/growth_schedule.h"
#include "src/train/growth/grow_checkpoint.h"

namespace amur {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kList = "train.growth";  // also the key of an entry in the lineage
constexpr const char* kStep = "at_step";

// The first entry of the list, key by key.
Json entry_of(const Config& config) {
  Json entry;
  for (const config::Key& key : config::find_group(kList)->keys)
    entry[key.name] = key.yaml(config, 0);
  return entry;
}

int64_t step_of(const Json& entry) {
  return std::stoll(entry.at(kStep).get<std::string>());
}

// What a checkpoint has grown by during runs, by step.
std::map<int64_t, Json> entries_in_lineage(const CheckpointInfo& saved) {
  std::map<int64_t, Json> entries;
  for (const std::string& text : saved.lineage)
    if (const Json ancestor = Json::parse(text); ancestor.contains(kList))
      entries[step_of(ancestor[kList])] = ancestor[kList];
  return entries;
}

Growth next_growth(const Config& config) {
  ModelConfig model = config.model;
  model.vocab = std::max<int64_t>(model.vocab, 1);  // where the vocabulary is not known yet
  return {model, config.train.growth.front().options};
}

// The configuration behind the next entry.
Config behind_next(const Config& config) {
  Config next = grown_config(config, next_growth(config));
  next.model.vocab = config.model.vocab;
  apply(config.train.growth.front().schedule, config.train.growth.front().at_step, next);
  next.train.growth.erase(next.train.growth.begin());
  return next;
}

}  // namespace

Config config_behind_growth(const Config& config, const CheckpointInfo& saved,
                            const std::string& path) {
  const std::map<int64_t, Json> grown = entries_in_lineage(saved);
  Config now = config;
  while (!now.train.growth.empty() && now.train.growth.front().at_step <= saved.step) {
    const int64_t step = now.train.growth.front().at_step;
    const auto found = grown.find(step);
    if (found == grown.end()) {
      if (step == saved.step) break;  // due
      std::string steps;
      for (const auto& [at, entry] : grown)
        steps += fmt::format("{}{}", steps.empty() ? "" : ", ", at);
      throw UsageError(
          "train.growth: an entry has at_step {}, but '{}', of step {}, did not grow there ({}). "
          "Growth cannot be made up for: put it at a later step, or begin from an older checkpoint",
          step, path, saved.step,
          steps.empty() ? std::string("it has not grown in a run") : "it grew at step " + steps);
    }
    const Json entry = entry_of(now);
    for (const auto& [key, value] : found->second.items())
      if (entry.contains(key) && entry[key] != value)
        throw UsageError(
            "train.growth: '{}' grew at step {} with {} {}, the list says {}; use the same value, "
            "or begin from a checkpoint before that step",
            path, step, key, value.get<std::string>(), entry[key].get<std::string>());
    now = behind_next(now);
  }
  // What is to come must be possible, too.
  for (Config later = now; !later.train.growth.empty();) later = behind_next(later);
  return now;
}

bool growth_is_due(const Config& config, int64_t step) {
  return !config.train.growth.empty() && config.train.growth.front().at_step == step;
}

Config grow_run(const Config& config, const std::string& input, const std::string& output,
                const Tokenizer& tokenizer, ProcessGrid& grid, Runtime& runtime) {
  const CheckpointInfo info = Checkpoint::read_info(input, &grid);
  // In the precision of the parameters.
  Config reading = config;
  if (reading.train.precision == Precision::bf16) reading.train.precision = Precision::fp32;
  const Growth growth = next_growth(config);
  const Config next = behind_next(config);
  GrownCheckpoint grown(input, info, reading, growth, grid, runtime);
  const int64_t before = grown.from().parameters().global_elements(),
                after = grown.to().parameters().global_elements();
  Log::info("step {}: growing from {:.2f} to {:.2f} M parameters", info.step,
            static_cast<double>(before) * 1e-6, static_cast<double>(after) * 1e-6);
  for (const std::string& warning : growth.warnings()) Log::info("note: {}", warning);

  GrownCheckpoint::Content content;
  content.info = info;
  content.info.config_yaml = to_yaml(next);
  Json ancestor = Json::parse(ancestor_text(std::filesystem::path(input).filename().string(),
                                            growth, info.step, before, after));
  ancestor[kList] = entry_of(config);
  content.ancestor = ancestor.dump();
  content.file = file_options(config.checkpoint);
  const auto outcome = grown.grow(output, content, probe_pairs(""), tokenizer, grid);
  Log::info("{}", to_text(*outcome.proof));
  if (!outcome.written)
    throw NumericError(
        "the model grown at step {} computes other embeddings than before; '{}' is the way back, "
        "without this entry of train.growth or with less noise",
        info.step, input);
  return next;
}

std::string growth_record(const CheckpointInfo& saved) {
  if (saved.lineage.empty()) return "";
  Json newest = Json::parse(saved.lineage.back());
  if (!newest.contains(kList) || step_of(newest[kList]) != saved.step) return "";
  Json record;
  for (const char* key : {"from", "to", "parameters_before", "parameters_after", "proof"})
    record[key] = newest[key];
  return record.dump();
}

}  // namespace amur
