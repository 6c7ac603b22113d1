#include <charconv>
#include <iostream>

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/train/growth/widen.h"

namespace amur {
namespace {

double number(const char* option, const std::string& text, double example) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw UsageError("--{} '{}': give a number, e.g. {}", option, text, example);
  return value;
}

}  // namespace

int run_widen(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("widen",
                   "Turns a trained model into a larger one that computes the same embeddings.");
  RunOptions run_options;
  WidenOptions options;
  GrowthOptions& g = options.growth;
  GrowthSchedule& schedule = options.schedule;
  std::string split = "noise", noise = "10", head_growth = "extend", peak = "0";
  int64_t seed = 0;
  bool no_projection = false, no_proof = false;
  line.argument("IN", options.input, "a checkpoint file, or a run folder (its newest)");
  line.argument("OUT", options.output, "the checkpoint to be written");
  line.option("hidden", g.hidden, "N", "width of the model");
  line.option("heads", g.heads, "N", "attention heads");
  line.option("head-size", g.head_size, "N", "width of a head");
  line.choice("head-growth", head_growth, {"extend", "copies"},
              "a larger head: new numbers beside the old ones, or copies of them");
  line.option("ffn", g.ffn, "N", "width of the feed-forward network");
  line.option("layers", g.layers, "N", "layers");
  line.option("positions", g.positions, "N", "model.max_length");
  line.option("vocab", options.vocabulary, "FILE",
              "a SentencePiece model that begins with the checkpoint's tokens");
  line.choice("split", split, {"noise", "even", "uneven"}, "how copies share a weight");
  line.option("noise-db", noise, "DB", "of a shared weight over its noise (default 10)");
  line.option("seed", seed, "N", "of the noise and of new numbers");
  line.flag("no-projection", no_projection,
            "let embeddings grow with --hidden where the model has no projection");
  line.flag("old-statistics", g.old_statistics,
            "LayerNorm: mean and variance of the copies alone, for any --hidden");
  line.option("warmup-steps", schedule.warmup_steps, "N",
              "the new configuration: steps until the learning rate is at its peak again");
  line.option("peak-rate", peak, "FACTOR", "of optimizer.learning_rate, after growth (1)");
  line.option("decay-steps", schedule.decay_steps, "N",
              "steps from here in which the rate falls (to the end of the run's schedule)");
  line.option("probe", options.probe, "FILE",
              "texts to compare the models on, one a line or query TAB document");
  line.option("proof-ranks", options.proof_ranks, "N",
              "ranks that share a model to compare it (default: as few as memory allows)");
  line.flag("no-proof", no_proof,
            "write OUT without comparing the two models; the lineage says so");
  line.option("config", options.config_output, "FILE", "write the new configuration there too");
  line.flag("plan", options.plan_only, "print what would be done to each tensor; write nothing");
  run_options.declare_device(line);
  run_options.declare_json(line);
  line.footer("Exit code 5: the embeddings differ by more than the bound; OUT is not written.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  const CommBackend backend = run_options.cpu_backend();
  g.split = split == "even"     ? GrowthSplit::even
            : split == "uneven" ? GrowthSplit::uneven
                                : GrowthSplit::noise;
  if (options.proof_ranks < 0)
    throw UsageError("--proof-ranks {}: must not be negative", options.proof_ranks);
  g.noise_db = number("noise-db", noise, 10);
  schedule.peak_rate = number("peak-rate", peak, 1);
  if (schedule.peak_rate < 0 || schedule.warmup_steps < 0 || schedule.decay_steps < 0)
    throw UsageError("--peak-rate, --warmup-steps and --decay-steps must not be negative");
  g.head_growth = head_growth == "copies" ? HeadGrowth::copies : HeadGrowth::extend;
  if (seed < 0) throw UsageError("--seed {}: must not be negative", seed);
  g.seed = static_cast<uint64_t>(seed);
  g.projection = !no_projection;
  options.prove = !no_proof;
  const WidenResult result = widen(options, backend, runtime);
  if (runtime.rank() == 0)
    print_text(run_options.json ? to_json(result, options) + "\n" : to_text(result, options));
  return options.plan_only || result.written ? kExitOk : kExitNumeric;
}

}  // namespace amur
