#include <iostream>

#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/output.h"
#include "src/train/session.h"
#include "src/train/verify_gradient.h"

namespace amur {

int run_verify_grad(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("verify-grad",
                   "Certifies the gradient of one global batch against an independent reference.");
  RunOptions options;
  std::string config_path, fault_name = "none";
  int64_t samples = 512;
  line.argument("CONFIG", config_path, "the YAML file of the run");
  line.option("samples", samples, "N", "at most this many samples (default 512)");
  line.choice("break", fault_name,
              {"none", "naive-accumulation", "mean-of-local-means", "temperature-in-replay"},
              "make this mistake on purpose: the certificate must fail");
  options.declare_set(line);
  options.declare_device(line);
  options.declare_json(line);
  line.footer("Exit code 0: within the bounds; 5: not.");
  if (!line.parse(args)) return runtime.rank() == 0 ? print_text(line.help()) : kExitOk;
  const Device device = device_of_rank(options.gpus(), runtime);
  const CommBackend backend = options.comm_backend();
  if (samples < 2) throw UsageError("--samples {}: a contrastive batch needs at least 2", samples);
  const GradientFault fault =
      fault_name == "naive-accumulation"      ? GradientFault::naive_accumulation
      : fault_name == "mean-of-local-means"   ? GradientFault::mean_of_local_means
      : fault_name == "temperature-in-replay" ? GradientFault::temperature_in_replay
                                              : GradientFault::none;
  Config config = load_config(config_path, options.overrides, starting_point);
  const auto grid = start_grid(config, backend, runtime, device);
  runtime.set_phase("opening the data");
  const Dataset data(config.data, grid->world(), grid->node());
  const auto tokenizer = make_tokenizer(config, data, grid->world());
  config.model.vocab = tokenizer->vocab_size();
  const GradientCertificate certificate =
      verify_gradient(config, data, *tokenizer, samples, fault, *grid, runtime, device);
  if (runtime.rank() == 0)
    std::cout << (options.json ? to_json(certificate) + "\n" : to_table(certificate));
  return certificate.pass ? kExitOk : kExitNumeric;
}

}  // namespace amur
