#include "src/core/gpu.h"

#include <dlfcn.h>

#include <atomic>
#include <filesystem>
#include <system_error>

#include "src/core/error.h"

namespace amur {
namespace {

std::atomic<DeviceBackend*> found{nullptr};

GpuSearch& fail(GpuSearch& search, std::string problem, std::string remedy) {
  search.problem = std::move(problem);
  search.remedy = std::move(remedy);
  return search;
}

std::string beside_the_program(const char* name) {
  std::error_code failed;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", failed);
  return failed ? name : (program.parent_path() / name).string();
}

template <class Function>
Function* symbol(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// The back end in this library; null with the reason in `search`. Libraries stay loaded: device
// code cannot be unloaded safely.
DeviceBackend* load(GpuSearch& search) {
  void* library = dlopen(search.module.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fail(search, fmt::format("the GPU back end cannot be loaded: {}", dlerror()),
         "install the CUDA libraries that it names, or put their folder into LD_LIBRARY_PATH");
    return nullptr;
  }
  InterfaceFunction* interface = symbol<InterfaceFunction>(library, kInterfaceSymbol);
  BackendFunction* backend = symbol<BackendFunction>(library, kBackendSymbol);
  const std::string theirs = interface ? interface() : "nothing that this program knows";
  if (!interface || !backend || theirs != AMUR_DEVICE_INTERFACE) {
    fail(search,
         fmt::format("{} was built for {}, this program for {}", search.module, theirs,
                     AMUR_DEVICE_INTERFACE),
         "build both together");
    return nullptr;
  }
  return backend();
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
    backend = load(search);
    if (!backend) return search;
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
