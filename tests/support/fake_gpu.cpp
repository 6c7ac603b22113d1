// A GPU back end on the memory of the CPU, to test what stands above one without a GPU. Its memory
// can be reached through the back end only: who takes it for host memory is stopped by the system.
// FAKE_GPU_PROBLEM in the environment: what it finds wrong with its GPU.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "src/core/device_backend.h"
#include "src/core/error.h"

namespace amur {
namespace {

size_t page_size() {
  static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// Opens the pages of a range for as long as it lives.
class Opened {
 public:
  Opened(const void* memory, size_t bytes, Device device) {
    if (device == Device::cpu()) return;
    const auto address = reinterpret_cast<uintptr_t>(memory);
    first_ = address / page_size() * page_size();
    bytes_ = address + bytes - first_;
    protect(PROT_READ | PROT_WRITE);
  }
  ~Opened() {
    if (bytes_ > 0) protect(PROT_NONE);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  void protect(int how) const {
    if (mprotect(reinterpret_cast<void*>(first_), bytes_, how) != 0) std::abort();
  }
  uintptr_t first_ = 0;
  size_t bytes_ = 0;
};

class FakeBackend final : public DeviceBackend {
 public:
  std::string library_text() const override { return "a pretended GPU"; }
  GpuProbe probe() const override {
    const char* problem = std::getenv("FAKE_GPU_PROBLEM");
    return {
        {{"Pretender", 9, 0, size_t{1} << 30}}, problem ? problem : "", problem ? "mend it" : ""};
  }
  void* allocate(size_t bytes, Device device) override {
    const size_t whole = size_t{1} << 30;
    if (bytes > whole) throw MemoryError(device, bytes, whole, whole);
    void* memory = mmap(nullptr, bytes + 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw MemoryError(device, bytes, 0, whole);
    const std::lock_guard lock(mutex_);
    sizes_[memory] = bytes + 1;
    peak_ = std::max(peak_, bytes);
    return memory;
  }
  size_t peak_bytes(Device) const override { return peak_; }
  size_t free_bytes(Device) const override { return size_t{1} << 30; }
  void release(void* memory, Device) noexcept override {
    const std::lock_guard lock(mutex_);
    munmap(memory, sizes_[memory]);
    sizes_.erase(memory);
  }
  // One copy at a time: both may lie in one page.
  void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
            Stream) override {
    const std::lock_guard lock(mutex_);
    const Opened target(to, bytes, to_device), source(from, bytes, from_device);
    std::memmove(to, from, bytes);
  }
  void fill_zero(void* memory, Device device, size_t bytes, Stream) override {
    const std::lock_guard lock(mutex_);
    const Opened target(memory, bytes, device);
    std::memset(memory, 0, bytes);
  }
  void synchronize(Stream) override {}
  void* create_event(Device) override { return std::malloc(1); }
  void destroy_event(void* event) noexcept override { std::free(event); }
  void record(void*, Stream) override {}
  void wait(void*, Stream) override {}

 private:
  std::mutex mutex_;
  std::map<void*, size_t> sizes_;
  size_t peak_ = 0;  // of one block
};

}  // namespace
}  // namespace amur

extern "C" {
const char* amur_device_interface();
const char* amur_device_interface() {
  return AMUR_DEVICE_INTERFACE;
}
amur::DeviceBackend* amur_device_backend();
amur::DeviceBackend* amur_device_backend() {
  static amur::FakeBackend backend;
  return &backend;
}
}
