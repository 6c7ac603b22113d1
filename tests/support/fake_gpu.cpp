// A GPU back end on the memory of the CPU, to test what stands above one without a GPU.
// FAKE_GPU_PROBLEM in the environment: what it finds wrong with its GPU.
#include <cstdlib>
#include <cstring>

#include "src/core/device_backend.h"
#include "src/core/error.h"

namespace amur {
namespace {

class FakeBackend final : public DeviceBackend {
 public:
  std::string library_text() const override { return "a pretended GPU"; }
  GpuProbe probe() const override {
    const char* problem = std::getenv("FAKE_GPU_PROBLEM");
    return {
        {{"Pretender", 9, 0, size_t{1} << 30}}, problem ? problem : "", problem ? "mend it" : ""};
  }
  void* allocate(size_t bytes, Device device) override {
    if (bytes > size_t{1} << 30)
      throw UsageError("{}: {} bytes are too much", device.text(), bytes);
    return std::malloc(bytes + 1);
  }
  void release(void* memory, Device) noexcept override { std::free(memory); }
  void copy(void* to, Device, const void* from, Device, size_t bytes, Stream) override {
    std::memcpy(to, from, bytes);
  }
  void fill_zero(void* memory, Device, size_t bytes, Stream) override {
    std::memset(memory, 0, bytes);
  }
  void synchronize(Stream) override {}
  void* create_event(Device) override { return std::malloc(1); }
  void destroy_event(void* event) noexcept override { std::free(event); }
  void record(void*, Stream) override {}
  void wait(void*, Stream) override {}
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
