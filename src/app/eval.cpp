#include <iostream>

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/core/log.h"
#include "src/train/evaluation.h"
#include "src/train/session.h"

namespace amur {
namespace {

// Pairs of a file in place of the sources that the model was trained with.
void evaluate_on_file(Config& config, const std::string& path) {
  SourceConfig source;
  source.path = source.eval_path = path;
  source.format =
      path.find(".jsonl") != std::string::npos ? SourceFormat::jsonl : SourceFormat::tsv;
  if (!config.data.sources.empty()) {
    source.query_prefix = config.data.sources[0].query_prefix;
    source.document_prefix = config.data.sources[0].document_prefix;
  }
  config.data.sources = {source};
}

}  // namespace

int run_eval(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("eval",
                   "Retrieval metrics of a checkpoint over a whole pool, in both directions.");
  RunOptions options;
  std::string checkpoint, data_path;
  line.argument("CHECKPOINT", checkpoint, "a checkpoint file, or a run folder (its newest)");
  line.option(
      "data", data_path, "FILE",
      "pairs to evaluate on (.tsv or .jsonl, also .gz) instead of the run's own test split");
  options.declare_set(line);
  options.declare_device(line);
  options.declare_json(line);
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  const CommBackend backend = options.backend();
  runtime.set_phase("reading the checkpoint");
  Config config = checkpoint_config(checkpoint, options.overrides);
  const auto grid = start_grid(config, backend, runtime);
  TrainedModel trained = load_trained_model(checkpoint, options.overrides, *grid);
  if (!data_path.empty()) evaluate_on_file(trained.config, data_path);
  runtime.set_phase("opening the data");
  const Dataset data(trained.config.data, grid->world(), grid->node());
  const EvalSet set = data.eval_set();
  if (set.queries.empty())
    throw UsageError("there are no evaluation pairs: give some with --data FILE");
  TextEmbedder embedder(*trained.model, *trained.tokenizer, trained.config, grid->dp(), runtime);
  const Evaluation result = evaluate(embedder, set, grid->world());
  if (runtime.rank() != 0) return kExitOk;
  std::cout << (options.json ? to_json(result) + "\n" : to_table(result));
  Log::info("step {}, {:.1f} s", trained.info.step, result.seconds);
  return kExitOk;
}

}  // namespace amur
