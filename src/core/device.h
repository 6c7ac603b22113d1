// Where memory lives and in which order work on it happens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace amur {

struct Device {
  enum class Kind : uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;

  static constexpr Device cpu() { return {}; }
  static constexpr Device cuda(int index = 0) { return {Kind::cuda, index}; }
  bool operator==(const Device&) const = default;
  std::string text() const;  // "cpu", "cuda:0"
};

// An ordered queue of work on a device. On the CPU work is done when the call returns, so a Stream
// is empty there; code above the kernels is written once for both. On a GPU a null handle is the
// device's default stream, and so is the Stream of the CPU where memory of a GPU is meant.
class Stream {
 public:
  Stream() = default;
  explicit Stream(Device device, void* handle = nullptr) : device_(device), handle_(handle) {}
  Device device() const { return device_; }
  void* handle() const { return handle_; }
  void synchronize() const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

// A point in a stream that another stream of the same device can wait for.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  void record(Stream stream);
  void wait(Stream stream) const;

 private:
  void* handle_ = nullptr;
};

// 64-byte aligned, not initialised. Throws UsageError where no GPU is in use (src/core/gpu.h) or it
// has not enough memory, and std::bad_alloc where the CPU has not.
void* allocate(size_t bytes, Device device);
void release(void* memory, size_t bytes, Device device) noexcept;
// Between any two devices; the CPU side is usable on return.
void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
          Stream stream);
void fill_zero(void* memory, Device device, size_t bytes, Stream stream);

// Bytes that `allocate` has handed out on this device and not got back, and the most there ever
// were.
struct MemoryUse {
  size_t now = 0;
  size_t peak = 0;
};
MemoryUse memory_use(Device device);

}  // namespace amur
