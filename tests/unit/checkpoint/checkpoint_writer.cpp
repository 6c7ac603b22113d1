// Writes checkpoints into a folder until it is killed: step-<n> for n = 1, 2, ...
#include <unistd.h>

#include "src/train/checkpoint/run_folder.h"
#include "tests/unit/checkpoint/fixture.h"

int main(int argc, char** argv) {
  using namespace amur;
  return run_main(argc, argv, [&](Runtime& runtime) {
    if (argc != 2) throw UsageError("usage: checkpoint_writer RUN-DIR");
    ProcessGrid grid(runtime, {runtime.size(), 1});
    RunFolder folder(argv[1], grid);
    const std::string pid = std::to_string(::getpid());
    test::write_file(fmt::format("{}/pid-{}", argv[1], runtime.rank()), {pid.begin(), pid.end()});
    ParameterSet parameters;
    for (const char* name : {"first", "second", "third"}) {
      Parameter p;
      p.name = name;
      p.axes = {{512, AxisRole::vocab}, {512, AxisRole::model}};
      p.init = {Initializer::Kind::constant, 1};
      parameters.add(std::move(p));
    }
    parameters.allocate(DType::f32, Device::cpu(), 0, 1);
    parameters.initialise(0, 0, 1);
    CheckpointConfig config;
    for (int64_t step = 1;; ++step) {
      CheckpointInfo info;
      info.step = step;
      info.optimizer = "tiger";
      Checkpoint::save(folder.checkpoint_path(step), info, parameters, {}, 0, grid);
      folder.publish(step, config, {});
    }
    return 0;
  });
}
