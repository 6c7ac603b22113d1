#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/core/log.h"
#include "src/train/evaluation/classification.h"
#include "src/train/evaluation/pairs.h"
#include "src/train/evaluation/retrieval.h"
#include "src/train/evaluation/sts.h"
#include "src/train/session.h"

namespace amur {
namespace {

struct EvalOptions {
  std::string task = "pairs", data, test, split, tower;
  std::string query_prefix = "default", document_prefix = "default";  // "default": as in training

  // An option that this task would ignore is a mistake.
  void refuse_stray_options() const {
    const auto only = [this](const std::string& value, const char* name, bool fits,
                             const char* tasks) {
      if (!value.empty() && !fits)
        throw UsageError("--{} belongs to --task {}, not to {}", name, tasks, task);
    };
    only(split, "split", task == "retrieval", "retrieval");
    only(test, "test", task == "classification", "classification");
    only(tower, "tower", task == "sts" || task == "classification", "sts or classification");
    if (task != "pairs" && data.empty())
      throw UsageError("--task {} needs --data: {}", task,
                       task == "retrieval" ? "a folder in BEIR's layout" : "a TSV file");
  }
};

// The prefixes of both sides in training, unless others are given.
void set_prefixes(const EvalOptions& eval, Config& config) {
  for (SourceConfig& source : config.data.sources) {
    if (eval.query_prefix != "default") source.query_prefix = eval.query_prefix;
    if (eval.document_prefix != "default") source.document_prefix = eval.document_prefix;
  }
}

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

// What to print for people, or as JSON.
std::string run_task(const EvalOptions& eval, bool json, TrainedModel& trained, ProcessGrid& grid,
                     Runtime& runtime) {
  TextEmbedder embedder(*trained.model, *trained.tokenizer, trained.config, grid.dp(), runtime);
  if (eval.task == "pairs") {
    if (!eval.data.empty()) evaluate_on_file(trained.config, eval.data);
    set_prefixes(eval, trained.config);
    const Dataset data(trained.config.data, grid.world(), grid.node());
    const EvalSet set = data.eval_set();
    if (set.queries.empty())
      throw UsageError("there are no evaluation pairs: give some with --data FILE");
    const Evaluation result = evaluate(embedder, set, grid.world(), Intervals::yes);
    return json ? to_json(result) : to_table(result);
  }
  if (trained.config.data.sources.empty()) trained.config.data.sources.emplace_back();
  set_prefixes(eval, trained.config);
  const SourceConfig& source = trained.config.data.sources[0];
  const int tower = eval.tower == "document" ? 1 : 0;
  const std::string& prefix = tower == 1 ? source.document_prefix : source.query_prefix;
  TaskScores scores;
  if (eval.task == "retrieval") {
    scores = evaluate_retrieval({.folder = eval.data,
                                 .split = eval.split.empty() ? "test" : eval.split,
                                 .query_prefix = source.query_prefix,
                                 .document_prefix = source.document_prefix},
                                embedder, grid.world());
  } else if (eval.task == "sts") {
    scores =
        evaluate_sts({.file = eval.data, .tower = tower, .prefix = prefix}, embedder, grid.world());
  } else {
    scores = evaluate_classification(
        {.train = eval.data, .test = eval.test, .tower = tower, .prefix = prefix}, embedder,
        grid.world());
  }
  return json ? to_json(scores) : to_table(scores);
}

}  // namespace

int run_eval(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("eval",
                   "What the embeddings of a checkpoint are worth: retrieval of pairs or over a "
                   "corpus, similarity, classification.");
  RunOptions options;
  EvalOptions eval;
  std::string checkpoint;
  line.argument("CHECKPOINT", checkpoint, "a checkpoint file, or a run folder (its newest)");
  line.choice("task", eval.task, {"pairs", "retrieval", "sts", "classification"},
              "pairs (default): each side of a pair finds the other; retrieval: a corpus in BEIR's "
              "layout; sts: cosine against people's scores; classification: a closed-form linear "
              "classifier");
  line.option("data", eval.data, "PATH",
              "pairs: .tsv or .jsonl instead of the run's own test split; retrieval: folder with "
              "corpus.jsonl, queries.jsonl, qrels/; sts: TSV of text, text, score; "
              "classification: TSV of text, label; each also as .gz");
  line.option("split", eval.split, "NAME", "retrieval: qrels/NAME.tsv; default: test");
  line.option("test", eval.test, "FILE",
              "classification: TSV of text, label to test on; default: a fifth of --data");
  line.option("tower", eval.tower, "query|document",
              "sts, classification: which side the texts are; default: query");
  line.option("query-prefix", eval.query_prefix, "TEXT",
              "put before queries; default: as in training");
  line.option("document-prefix", eval.document_prefix, "TEXT",
              "put before documents; default: as in training");
  options.declare_set(line);
  options.declare_device(line);
  options.declare_json(line);
  line.footer("Figures and their definitions: docs/evaluation.md.\n");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  if (!eval.tower.empty() && eval.tower != "query" && eval.tower != "document")
    throw UsageError("amur eval: --tower is '{}', but must be one of query, document", eval.tower);
  eval.refuse_stray_options();
  const Device device = device_of_rank(options.gpus(), runtime);
  const CommBackend backend = options.comm_backend();
  runtime.set_phase("reading the checkpoint");
  Config config = checkpoint_config(checkpoint, options.overrides);
  const auto grid = start_grid(config, backend, runtime, device);
  TrainedModel trained = load_trained_model(checkpoint, options.overrides, *grid, device);
  runtime.set_phase("opening the data");
  const std::string text = run_task(eval, options.json, trained, *grid, runtime);
  if (runtime.rank() != 0) return kExitOk;
  Log::info("step {}", trained.info.step);
  return print_text(text + (options.json ? "\n" : ""));
}

}  // namespace amur
