// cuDNN's stand-in, where the loader finds it, works in the queue of the emulated GPUs.
#include <dlfcn.h>

#include <cuda_runtime.h>
#include "tests/support/cudnn_stand_in.h"

namespace {

[[maybe_unused]] const bool told = [] {
  void* library = dlopen("libcudnn_graph.so.9", RTLD_NOW | RTLD_LOCAL);
  void* function = library ? dlsym(library, "cudnn_stand_in_queue") : nullptr;
  if (!function) return false;
  void (*enqueue)(const char*, std::function<void()>) = amur::emulation::enqueue;
  reinterpret_cast<decltype(&cudnn_stand_in_queue)>(function)(enqueue);
  return true;
}();

}  // namespace
