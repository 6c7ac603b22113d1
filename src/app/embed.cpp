#include <iostream>
#include <nlohmann/json.hpp>

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/core/log.h"
#include "src/train/embed_file.h"
#include "src/train/embedding_output.h"
#include "src/train/session.h"

namespace amur {

int run_embed(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("embed", "Embeds texts, one a line, as unit vectors in input order.");
  RunOptions options;
  EmbedOptions embed;
  std::string checkpoint, tower = "query", prefix = "default", resume = "auto";
  line.argument("CHECKPOINT", checkpoint, "a checkpoint file, or a run folder (its newest)");
  line.option("input", embed.input, "FILE", "texts, one a line, also .gz; - for standard input");
  line.option("output", embed.output, "FILE",
              "*.npy, *.h5 with the data set /embeddings, or *.jsonl with a line {\"text\": .., "
              "\"embedding\": [..]} a text; - for such lines on standard output");
  line.choice("tower", tower, {"query", "document"}, "which side the texts are");
  line.option("prefix", prefix, "TEXT",
              "put before every text; default: the side's prefix in training");
  line.choice("resume", resume, {"auto", "never"},
              "auto: go on where an interrupted job with the same output stood");
  options.declare_set(line);
  options.declare_device(line);
  options.declare_json(line);
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  const Device device = device_of_rank(options.gpus(), runtime);
  const CommBackend backend = options.comm_backend();
  if (embed.input.empty()) throw UsageError("--input is missing: a file, or - for standard input");
  embedding_format(embed.output);
  if (options.json && embed.output == "-")
    throw UsageError("--output - and --json both want standard output");
  embed.resume = resume == "auto";
  runtime.set_phase("reading the checkpoint");
  const auto grid =
      start_grid(checkpoint_config(checkpoint, options.overrides), backend, runtime, device);
  TrainedModel trained = load_trained_model(checkpoint, options.overrides, *grid, device);
  embed.tower = tower == "document" ? 1 : 0;
  if (prefix != "default")
    embed.prefix = prefix;
  else if (!trained.config.data.sources.empty())
    embed.prefix = embed.tower == 1 ? trained.config.data.sources[0].document_prefix
                                    : trained.config.data.sources[0].query_prefix;
  TextEmbedder embedder(*trained.model, *trained.tokenizer, trained.config, grid->dp(), runtime);
  runtime.set_phase("embedding texts");
  const EmbedResult result = embed_file(embed, embedder, grid->world());
  if (runtime.rank() != 0) return kExitOk;
  const auto embedded = static_cast<double>(result.texts - result.resumed);
  Log::info("{} texts ({} tokens, {} cut at {} tokens) in {:.1f} s: {:.0f} texts/s -> {}",
            result.texts, result.tokens, result.truncated, trained.config.model.max_length,
            result.seconds, embedded / result.seconds, embed.output);
  if (options.json) {
    const nlohmann::ordered_json json = {
        {"texts", result.texts},     {"resumed_texts", result.resumed},
        {"tokens", result.tokens},   {"truncated", result.truncated},
        {"seconds", result.seconds}, {"output", embed.output}};
    std::cout << json.dump(2) << '\n';
  }
  return kExitOk;
}

}  // namespace amur
