// `amur import` and `amur export`: models of other programs, and for them.
#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/train/huggingface/export.h"
#include "src/train/huggingface/import.h"
#include "src/train/session.h"

namespace amur {
namespace {

void require_format(const char* command, const std::string& format) {
  if (format != "hf")
    throw UsageError("amur {} {}: the format is hf (a Hugging Face folder)", command, format);
}

std::unique_ptr<ProcessGrid> grid_of_all(CommBackend backend, Runtime& runtime) {
  return start_grid(Config(), backend, runtime);
}

}  // namespace

int run_import(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("import",
                   "Turns a Hugging Face folder (the BERT family, static embeddings) into a "
                   "checkpoint to train, widen, evaluate and export.");
  RunOptions run_options;
  ImportOptions options;
  std::string format;
  line.argument("FORMAT", format, "hf");
  line.argument("DIR", options.folder,
                "config.json, model.safetensors, tokenizer.json or vocab.txt, modules.json, ...");
  line.argument("OUT", options.output, "the checkpoint to be written");
  line.flag("force", options.force, "replace OUT");
  run_options.declare_device(line);
  run_options.declare_json(line);
  line.footer("`amur embed` and `amur eval` also take DIR itself.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  require_format("import", format);
  const auto grid = grid_of_all(run_options.cpu_backend(), runtime);
  const ImportResult result = import_pretrained(options, *grid, runtime);
  if (runtime.rank() == 0)
    print_text(run_options.json ? to_json(result, options) + "\n" : to_text(result, options));
  return kExitOk;
}

int run_export(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("export",
                   "Hands a model over as a folder that sentence-transformers and transformers "
                   "load as it is.");
  RunOptions run_options;
  ExportOptions options;
  std::string format, tower = "either";
  line.argument("FORMAT", format, "hf");
  line.argument("CHECKPOINT", options.checkpoint,
                "a checkpoint file, or a run folder (its newest)");
  line.argument("DIR", options.folder, "the folder to be made");
  line.choice("tower", tower, {"either", "query", "document"},
              "which encoder, where model.towers is separate");
  line.flag("force", options.force, "replace DIR");
  run_options.declare_device(line);
  run_options.declare_json(line);
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  require_format("export", format);
  if (tower != "either") options.tower = tower;
  const auto grid = grid_of_all(run_options.cpu_backend(), runtime);
  const ExportResult result = export_pretrained(options, grid->world(), runtime);
  if (runtime.rank() == 0)
    print_text(run_options.json ? to_json(result, options) + "\n" : to_text(result, options));
  return kExitOk;
}

}  // namespace amur
