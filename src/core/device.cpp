#include "src/core/device.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "src/core/error.h"

namespace amur {
namespace {

constexpr size_t kAlignment = 64;
std::atomic<size_t> host_bytes{0};
std::atomic<size_t> host_peak{0};

void require_cpu(Device device) {
  if (device.kind != Device::Kind::cpu)
    throw UsageError("device {} is not available in this build; use --device cpu", device.text());
}

}  // namespace

std::string Device::text() const {
  return kind == Kind::cpu ? "cpu" : fmt::format("cuda:{}", index);
}

void Stream::synchronize() const { require_cpu(device_); }
void Event::record(Stream stream) { require_cpu(stream.device()); }
void Event::wait(Stream stream) const { require_cpu(stream.device()); }

void* allocate(size_t bytes, Device device) {
  require_cpu(device);
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  if (!memory) throw std::bad_alloc();
  const size_t now = host_bytes.fetch_add(bytes) + bytes;
  size_t peak = host_peak.load();
  while (now > peak && !host_peak.compare_exchange_weak(peak, now)) {
  }
  return memory;
}

void release(void* memory, size_t bytes, Device) noexcept {
  if (!memory) return;
  std::free(memory);
  host_bytes.fetch_sub(bytes);
}

void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes, Stream) {
  require_cpu(to_device);
  require_cpu(from_device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void fill_zero(void* memory, Device device, size_t bytes, Stream) {
  require_cpu(device);
  if (bytes > 0) std::memset(memory, 0, bytes);
}

MemoryUse memory_use(Device device) {
  require_cpu(device);
  return {host_bytes.load(), host_peak.load()};
}

}  // namespace amur
