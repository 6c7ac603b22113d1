#include <filesystem>
#include <iostream>

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/train/session.h"
#include "src/train/trainer.h"

namespace amur {

int run_train(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("train",
                   "Trains an encoder as a configuration says, or goes on where it stopped.");
  RunOptions options;
  std::string config_path;
  line.argument("CONFIG", config_path, "the YAML file of the run");
  options.declare_set(line);
  options.declare_run(line);
  options.declare_device(line);
  options.declare_json(line);
  line.footer(
      "Under mpirun or srun every rank takes its share; nothing else has to be set.\n"
      "Exit code 75: interrupted by a signal, checkpoint written, start the same command again.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  TrainOptions train_options;
  train_options.gpus = options.gpus();
  const CommBackend backend = options.comm_backend();
  train_options.resume = options.resume;
  train_options.run_dir = options.run_dir.empty()
                              ? "runs/" + std::filesystem::path(config_path).stem().string()
                              : options.run_dir;
  const TrainResult result = train(load_config(config_path, options.overrides, starting_point),
                                   train_options, backend, runtime);
  if (options.json && runtime.rank() == 0) std::cout << to_json(result) << '\n';
  return result.interrupted ? kExitInterrupted : kExitOk;
}

}  // namespace amur
