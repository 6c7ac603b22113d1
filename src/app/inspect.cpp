#include "src/train/checkpoint/inspect.h"

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/train/session.h"

namespace amur {

int run_inspect(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("inspect",
                   "Shows a checkpoint: tensors, state, configuration, what it grew from.");
  RunOptions run_options;
  InspectOptions options;
  std::string path;
  bool brief = false;
  line.argument("CHECKPOINT", path, "a checkpoint file, or a run folder (its newest)");
  line.flag("verify", options.verify, "recompute the check sum of every tensor");
  line.flag("brief", brief, "leave the statistics out, which read every tensor");
  run_options.declare_json(line);
  line.footer("Exit code 4: the file or one of its tensors is damaged.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  runtime.set_phase("reading the checkpoint");
  options.path = resolve_checkpoint(path);
  // By every rank, so that a file that is none is refused by all of them together.
  Checkpoint::read_info(options.path);
  if (runtime.rank() != 0) return kExitOk;
  options.statistics = !brief;
  options.json = run_options.json;
  const InspectResult result = inspect(options);
  print_text(result.output);
  return result.exit_code;
}

}  // namespace amur
