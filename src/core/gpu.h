// Finding the GPU back end and its GPUs.
#pragma once

#include <string>
#include <vector>

#include "src/core/device_backend.h"

namespace amur {

struct GpuSearch {
  std::string module;     // the library of the back end, where it was looked for
  std::string libraries;  // what it says of itself; empty where it was not loaded
  std::vector<GpuInfo> gpus;
  // Why no GPU can be used, and what to do; both empty where one can.
  std::string problem, remedy;

  bool usable() const { return problem.empty(); }
};

// Looks for libamur_cuda.so beside the running program, for the driver, and for GPUs. Without a
// driver the library is left alone (it brings large ones with it) unless `thorough`. Where a GPU is
// usable, tensors can be on it from now on.
GpuSearch find_gpus(bool thorough = false);
// The same for another library and driver.
GpuSearch find_gpus(const std::string& module, const std::string& driver, bool thorough);

// The back end of the GPUs that were found; throws UsageError where there is none.
DeviceBackend& gpu_backend();

}  // namespace amur
