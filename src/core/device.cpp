#include "src/core/device.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "src/core/error.h"
#include "src/core/gpu.h"

namespace amur {
namespace {

constexpr size_t kAlignment = 64;
constexpr int kMaxGpus = 64;

struct Count {
  std::atomic<size_t> now{0};
  std::atomic<size_t> peak{0};
};
std::array<Count, 1 + kMaxGpus> counts;

bool is_cpu(Device device) {
  return device.kind == Device::Kind::cpu;
}

Count& count_of(Device device) {
  AMUR_CHECK(device.index >= 0 && device.index < kMaxGpus, "device {}", device.text());
  return counts[is_cpu(device) ? 0 : static_cast<size_t>(1 + device.index)];
}

void* allocate_on_cpu(size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

void Stream::synchronize() const {
  if (!is_cpu(device_)) gpu_backend().synchronize(*this);
}

Event::Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Event::~Event() {
  if (handle_) gpu_backend().destroy_event(handle_);
}

void Event::record(Stream stream) {
  if (is_cpu(stream.device())) return;
  if (!handle_) handle_ = gpu_backend().create_event(stream.device());
  gpu_backend().record(handle_, stream);
}

void Event::wait(Stream stream) const {
  if (handle_ && !is_cpu(stream.device())) gpu_backend().wait(handle_, stream);
}

void* allocate(size_t bytes, Device device) {
  Count& count = count_of(device);
  void* memory = is_cpu(device) ? allocate_on_cpu(bytes) : gpu_backend().allocate(bytes, device);
  const size_t now = count.now.fetch_add(bytes) + bytes;
  size_t peak = count.peak.load();
  while (now > peak && !count.peak.compare_exchange_weak(peak, now)) {
  }
  return memory;
}

void release(void* memory, size_t bytes, Device device) noexcept {
  if (!memory) return;
  is_cpu(device) ? std::free(memory) : gpu_backend().release(memory, device);
  count_of(device).now.fetch_sub(bytes);
}

void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
          Stream stream) {
  if (bytes == 0) return;
  if (is_cpu(to_device) && is_cpu(from_device))
    std::memcpy(to, from, bytes);
  else
    gpu_backend().copy(to, to_device, from, from_device, bytes, stream);
}

void fill_zero(void* memory, Device device, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (is_cpu(device))
    std::memset(memory, 0, bytes);
  else
    gpu_backend().fill_zero(memory, device, bytes, stream);
}

MemoryUse memory_use(Device device) {
  const Count& count = count_of(device);
  return {count.now.load(), count.peak.load()};
}

}  // namespace amur
