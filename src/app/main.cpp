// `amur COMMAND ...`: finds the subcommand. What a command does stands in its own file.
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include <csignal>
#include <cstdio>

#include "kernels/gemm.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/core/error.h"
#include "src/core/version.h"
#include "src/train/config/config.h"
#include "src/train/config/config_schema.h"

namespace amur {
namespace {

std::string usage() {
  std::string out =
      "Amur trains contrastive embedding models on many workers.\n"
      "\n"
      "Usage: amur COMMAND [arguments]\n"
      "       mpirun -n 4 amur COMMAND [arguments]    (or srun)\n"
      "\n"
      "Commands\n";
  for (const Command& command : commands())
    out += fmt::format("  {:<14} {}\n", command.name, command.about);
  out +=
      "\n"
      "`amur COMMAND --help` lists what a command takes, `amur help configuration` describes "
      "every\n"
      "key of a configuration, `amur --version` names this version.\n";
  return out;
}

int run_command(Runtime& runtime, const std::vector<std::string>& args) {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (args[0] == command.name) return command.run(runtime, {args.begin() + 1, args.end()});
    names.emplace_back(command.name);
  }
  std::string near = config::nearest(args[0], names);
  throw UsageError("unknown command '{}'{}; `amur --help` lists the commands", args[0],
                   near.empty() ? "" : fmt::format(" (did you mean {}?)", near));
}

int run(int argc, char** argv) {
  start_again_for_blas(argv);
  std::vector<std::string> args(argv + 1, argv + argc);
  // A file that reaches the size limit is an error of that write, which is reported, not a signal.
  std::signal(SIGXFSZ, SIG_IGN);
#if defined(M_MMAP_THRESHOLD)
  // Large blocks go back to the system when they are freed. Left to itself, glibc raises this limit
  // to the largest block it has seen and keeps up to 32 MB of such blocks, in pieces; at 4 MB the
  // freed buffers of a checkpoint still stood for half a byte a parameter.
  constexpr int kLargeBlock = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, kLargeBlock);
#endif
  // What needs no ranks is answered before MPI starts.
  if (args.empty()) {
    std::fputs(usage().c_str(), stderr);
    return kExitUsage;
  }
  if (args[0] == "--version") return print_text(fmt::format("amur {}\n", kVersion));
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    if (args[0] != "help" || args.size() == 1) return print_text(usage());
    if (args[1] == "configuration") return print_text(configuration_reference());
    args = {args[1], "--help"};
  }
  return run_main(argc, argv, [&](Runtime& runtime) { return run_command(runtime, args); });
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  try {
    return amur::run(argc, argv);
  } catch (const amur::Error& e) {  // of what is answered without MPI; run_main lets nothing out
    std::fprintf(stderr, "%s\n", e.what());
    return e.exit_code();
  }
}
