#include "src/train/growth/compare.h"

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"

namespace amur {

int run_compare(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("compare", "Compares what two checkpoints compute for the same texts.");
  RunOptions run_options;
  CompareOptions options;
  line.argument("FIRST", options.first, "a checkpoint file, or a run folder (its newest)");
  line.argument("SECOND", options.second, "another one");
  line.option("probe", options.probe, "FILE",
              "texts, one a line or query TAB document; default: 10 made-up pairs a coordinate");
  run_options.declare_device(line);
  run_options.declare_json(line);
  line.footer("Exit code 0: the same function, within the bound of `amur widen`; 5: two.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  const CompareResult result = compare(options, run_options.cpu_backend(), runtime);
  if (runtime.rank() == 0) print_text(run_options.json ? to_json(result) + "\n" : to_text(result));
  return result.function.pass() ? kExitOk : kExitNumeric;
}

}  // namespace amur
