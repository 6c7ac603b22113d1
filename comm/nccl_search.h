// Finding the library behind comm/device_collectives.h.
#pragma once

#include <string>

#include "comm/device_collectives.h"

namespace amur {

struct NcclSearch {
  std::string module;     // the library, where it was looked for
  std::string libraries;  // what it says of itself; empty where it was not loaded
  // Why it cannot be used, and what to do; both empty where it can.
  std::string problem, remedy;

  bool usable() const { return problem.empty(); }
};

// Looks for libamur_nccl.so beside the running program and loads it, and NCCL with it. Asks no GPU.
// Where it is usable, grids can have it from now on.
NcclSearch find_nccl();
// The same for another library.
NcclSearch find_nccl(const std::string& module);

// What was found last; throws UsageError where nothing was.
DeviceCollectives& nccl_backend();

}  // namespace amur
