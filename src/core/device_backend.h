// What a GPU back end does for the program: memory and order of work. It is a library of its own,
// loaded at run time (src/core/gpu.h), so that one build serves machines with and without a GPU.
// kernels/device_kernels.h adds the operations.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "src/core/device.h"
#include "src/core/error.h"

namespace amur {

struct GpuInfo {
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability
  size_t bytes = 0;          // memory of the device
  std::string text() const;  // "NVIDIA H200 (sm_90, 139.8 GiB)"
};

// What a back end finds on this machine.
struct GpuProbe {
  std::vector<GpuInfo> gpus;  // by device index
  // Why none of them can be used, and what to do; empty where device 0 can.
  std::string problem, remedy;
};

// A device has less memory left than was asked for, in bytes.
class MemoryError : public UsageError {
 public:
  MemoryError(Device device, size_t asked, size_t free, size_t total)
      : UsageError("{}: {:.3f} GiB were asked for, but only {:.3f} of {:.3f} GiB are free",
                   device.text(), gib(asked), gib(free), gib(total)),
        free_(free) {}
  size_t free() const { return free_; }

 private:
  static double gib(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }
  size_t free_;
};

// Every function throws InternalError with the words of the library where that refuses a call.
// Streams are those of src/core/device.h: a null handle is the device's default stream.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;

  // "CUDA 13.0 (sm_80 sm_90a sm_100 compute_80)"; asks no device.
  virtual std::string library_text() const = 0;
  virtual GpuProbe probe() const = 0;

  // Throws MemoryError.
  virtual void* allocate(size_t bytes, Device device) = 0;
  virtual void release(void* memory, Device device) noexcept = 0;
  // The most that this process had in use at once, work space of the operations included.
  virtual size_t peak_bytes(Device device) const = 0;
  // What can still be allocated.
  virtual size_t free_bytes(Device device) const = 0;
  // At least one side is a GPU. A side on the CPU may be used again on return, which is before the
  // copy is made where it goes to the GPU.
  virtual void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
                    Stream stream) = 0;
  virtual void fill_zero(void* memory, Device device, size_t bytes, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;

  virtual void* create_event(Device device) = 0;
  virtual void destroy_event(void* event) noexcept = 0;
  virtual void record(void* event, Stream stream) = 0;
  virtual void wait(void* event, Stream stream) = 0;
};

// The two symbols of a back end's library. The first names what the program and the library have to
// have in common (the headers between them, the compiler); the second is only called where it is
// the program's own.
inline constexpr const char* kInterfaceSymbol = "amur_device_interface";
inline constexpr const char* kBackendSymbol = "amur_device_backend";
using BackendFunction = DeviceBackend*();

}  // namespace amur
