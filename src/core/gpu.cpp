#include "src/core/gpu.h"

#include <dlfcn.h>

#include <atomic>
#include <filesystem>
#include <system_error>

#include "src/core/error.h"
#include "src/core/library.h"

namespace amur {
namespace {

std::atomic<DeviceBackend*> found{nullptr};

GpuSearch& fail(GpuSearch& search, std::string problem, std::string remedy) {
  search.problem = std::move(problem);
  search.remedy = std::move(remedy);
  return search;
}

}  // namespace

GpuSearch find_gpus(const std::string& module, const std::string& driver, bool thorough) {
  GpuSearch search;
  search.module = module;
  std::error_code ignored;
  if (!std::filesystem::exists(module, ignored))
    return fail(search, fmt::format("this build has no GPU back end ({} does not exist)", module),
                "build it on a machine with a CUDA toolkit (docs/gpu.md)");
  const bool has_driver = dlopen(driver.c_str(), RTLD_LAZY | RTLD_LOCAL) != nullptr;
  DeviceBackend* backend = nullptr;
  if (has_driver || thorough) {
    const LoadedLibrary loaded = load_library(module, "the GPU back end", kInterfaceSymbol,
                                              AMUR_DEVICE_INTERFACE, kBackendSymbol);
    if (!loaded.problem.empty()) return fail(search, loaded.problem, loaded.remedy);
    backend = reinterpret_cast<BackendFunction*>(symbol_of(loaded, kBackendSymbol))();
    search.libraries = backend->library_text();
  }
  if (!has_driver)
    return fail(search, fmt::format("no NVIDIA driver ({} was not found)", driver),
                "install the driver of the GPU, or make it visible to this container");
  GpuProbe probe = backend->probe();
  search.gpus = std::move(probe.gpus);
  fail(search, probe.problem, probe.remedy);
  if (search.usable()) found = backend;
  return search;
}

GpuSearch find_gpus(bool thorough) {
  return find_gpus(beside_the_program("libamur_cuda.so"), "libcuda.so.1", thorough);
}

DeviceBackend& gpu_backend() {
  DeviceBackend* backend = found;
  if (!backend)
    throw UsageError("no GPU is in use here; `amur doctor` says why, --device cpu does without");
  return *backend;
}

}  // namespace amur
