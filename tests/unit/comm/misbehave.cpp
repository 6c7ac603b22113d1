// A job in which one rank misbehaves as the argument says; driven by test_robustness.py.
//   misbehave KIND LIVENESS PROGRESS      (seconds; LIVENESS 0: no watchdog)
#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#include "comm/nccl_search.h"
#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/core/gpu.h"

namespace amur {
namespace {

void sleep_seconds(double s) {
  std::this_thread::sleep_for(std::chrono::duration<double>(s));
}

// A grid over what passes for NCCL, with tensors on what passes for a GPU; over the real ones where
// MISBEHAVE_FOLDER names the folder of their libraries (launch/gpu-check.sh).
std::unique_ptr<ProcessGrid> grid_over_nccl(Runtime& runtime) {
  const char* folder = std::getenv("MISBEHAVE_FOLDER");
  const std::string real = folder ? folder : "";
  const GpuSearch gpus = folder ? find_gpus(real + "/libamur_cuda.so", "libcuda.so.1", false)
                                : find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false);
  const NcclSearch nccl = find_nccl(folder ? real + "/libamur_nccl.so" : AMUR_NCCL_STAND_IN);
  if (!gpus.usable() || !nccl.usable()) throw InternalError(gpus.problem + nccl.problem);
  GpuOptions options;
  options.device = Device::cuda();
  return std::make_unique<ProcessGrid>(runtime, GridShape{runtime.size(), 1}, CommBackend::nccl,
                                       options);
}

int work(Runtime& runtime, const std::string& kind, double liveness, double progress) {
  // For the cleaning up of what a test leaves behind.
  fmt::print("pid {}\n", getpid());
  std::fflush(stdout);
  if (kind == "usage-all") throw UsageError("no such file 'x.yaml'");
  if (liveness > 0)
    runtime.start_watchdog({.threads = 1,
                            .liveness_seconds = liveness,
                            .progress_seconds = progress,
                            .check_collectives = kind == "mismatch"});
  const int size = runtime.size(), rank = runtime.rank(), odd = size - 1;
  const bool nccl = kind.starts_with("nccl");
  const auto grid =
      nccl ? grid_over_nccl(runtime) : std::make_unique<ProcessGrid>(runtime, GridShape{size, 1});
  Communicator& world = grid->world();
  runtime.set_phase("warm-up");
  for (int i = 0; i < 10; ++i) world.barrier();
  runtime.set_phase("pass 1");

  if (kind == "usage-one" && rank == odd) throw UsageError("no such file 'x.yaml'");
  if (kind == "throw" && rank == odd) throw IoError("disk full");
  if (kind == "throw-all") throw IoError("disk full everywhere");
  if ((kind == "stop" && rank == odd) || (kind == "stop-first" && rank == 0)) {
    sleep_seconds(0.3 * liveness);  // some heartbeats, so that the others know the phase
    raise(SIGSTOP);
  }
  if (kind == "side" || nccl) {
    // A sum that one rank never starts.
    const Stream side = world.side_stream({});
    Tensor values = Tensor::zeros({1000}, DType::f32, nccl ? Device::cuda() : Device::cpu());
    if (kind == "nccl-kill" && rank == odd) raise(SIGKILL);
    if (rank != odd) {
      world.all_reduce(values, ReduceOp::sum, side);
      runtime.set_phase("update");
      world.synchronize(side);
    } else {
      for (;;) sleep_seconds(0.01);
    }
  }
  if (kind == "mismatch" && rank == odd) world.barrier();
  if (kind == "other-group" && rank == odd) grid->node().barrier();
  if ((kind == "loop" || kind == "funneled") && rank == odd)
    for (;;) sleep_seconds(0.01);
  if (kind == "leave" && rank == odd) return 0;
  if (kind == "kill" && rank == odd) raise(SIGKILL);
  if (kind == "honest") {
    // Longer than the progress limit in small steps of one rank, then longer than the liveness
    // limit in one.
    for (int i = 0; rank == odd && i < 8; ++i) {
      sleep_seconds(0.25 * progress);
      runtime.advance();
    }
    world.barrier();
    if (rank == odd) sleep_seconds(0.8 * progress);
  }
  for (int i = 0; kind == "work" && i < 20; ++i) {
    sleep_seconds(0.1);
    world.barrier();
  }
  world.sum(int64_t{1});
  if (kind == "interrupted") return kExitInterrupted;
  return 0;
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]).ends_with("funneled")) {
    // An MPI that does not give what the runtime would ask for.
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  }
  return amur::run_main(argc, argv, [&](amur::Runtime& runtime) {
    if (argc != 4) throw amur::UsageError("misbehave KIND LIVENESS PROGRESS");
    return amur::work(runtime, argv[1], std::atof(argv[2]), std::atof(argv[3]));
  });
}
