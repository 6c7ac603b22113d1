// The devices on which a test runs: the CPU, and a GPU only where there is a usable one, since a
// test that cannot run does not exist.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "src/core/gpu.h"
#include "src/core/tensor.h"

namespace amur {

// The GPUs of this machine. Libraries that the program loads lie beside it, not beside the tests.
inline std::string beside_amur(const char* library) {
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  return here / "../../../src/app" / library;
}
inline GpuSearch find_gpus_of_amur() {
  return find_gpus(beside_amur("libamur_cuda.so"), "libcuda.so.1", false);
}
inline const GpuSearch& gpus_of_amur() {
  static const GpuSearch found = find_gpus_of_amur();
  return found;
}
inline bool gpu_is_there() { return gpus_of_amur().usable(); }
// Computed by the CPU, many times as slow (tests/support/cuda_emulation): less will do there.
inline bool is_emulated(Device device) {
  return device != Device::cpu() && gpus_of_amur().libraries.find("emulated") != std::string::npos;
}
inline std::vector<Device> test_devices() {
  std::vector<Device> devices{Device::cpu()};
  if (gpu_is_there()) devices.push_back(Device::cuda());
  return devices;
}
// Cases of a GPU are known by this name.
inline std::string name_of_device(const ::testing::TestParamInfo<Device>& info) {
  return info.param == Device::cpu() ? "cpu" : "cuda";
}

inline Tensor copy_on(Device device, ConstTensorView t) {
  Tensor there(t.shape(), t.dtype(), device);
  copy(there, t);
  return there;
}

}  // namespace amur
