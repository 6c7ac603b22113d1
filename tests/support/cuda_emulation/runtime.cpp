// Devices with memory of their own, a queue of work, and CUDA's runtime over them.
//
// A GPU's memory can be touched by what runs on it only: everything else is stopped by the system.
// Each allocation has pages of its own with forbidden ones around, and ends where the second
// begins.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <fmt/format.h>

// A copy in the queue uses the event, so it may be destroyed before.
struct EmulatedEvent {
  bool recorded = false;
};
struct EmulatedPool {
  size_t used = 0, most = 0;
};

namespace amur::emulation {
namespace {

constexpr int kDevices = 2;
constexpr size_t kPage = 4096, kMemory = size_t{1} << 30, kAlignment = 256;
constexpr unsigned char kPoison = 0xff;
constexpr size_t kMostQueued = 64;
constexpr int kVersion = 13000;

size_t round_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

struct Allocation {
  int device;
  size_t bytes;
  bool freed = false;  // but still in the queue's work

  size_t taken() const { return round_up(bytes, kAlignment); }
  size_t pages() const { return round_up(taken(), kPage); }
};

struct Operation {
  int device;
  std::function<std::string(Orders)> run;
};

struct State {
  std::recursive_mutex mutex;
  std::map<std::byte*, Allocation> allocations;  // by their first byte
  std::map<std::byte*, size_t> pinned;
  std::map<const void*, size_t> allowed;  // shared memory of functions
  EmulatedPool pools[kDevices];
  std::deque<Operation> queue;
  Orders orders = Orders::both;
  std::string failure;
  cudaError_t last = cudaSuccess;
  thread_local static int device;

  State() {
    const char* chosen = std::getenv("AMUR_EMULATED_ORDERS");
    if (!chosen) return;
    if (std::strcmp(chosen, "forward") == 0) orders = Orders::forward;
    if (std::strcmp(chosen, "backward") == 0) orders = Orders::backward;
  }
};
thread_local int State::device = 0;

// Never destroyed: the program may still free memory when it ends.
State& state() {
  static State* all = new State;
  return *all;
}

std::byte* pages_of(std::byte* memory) {
  return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(memory) / kPage * kPage);
}
void protect(std::byte* memory, const Allocation& a, int how) {
  if (mprotect(pages_of(memory), a.pages(), how) != 0) std::abort();
}
void fail_device(const std::string& what) {
  State& s = state();
  if (!s.failure.empty()) return;
  s.failure = what;
  std::fprintf(stderr, "emulated GPU: %s\n", what.c_str());
}

// The memory of one device is open for as long as it lives.
class Opened {
 public:
  explicit Opened(int device) : device_(device) { all(PROT_READ | PROT_WRITE); }
  ~Opened() { all(PROT_NONE); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  void all(int how) const {
    for (const auto& [memory, a] : state().allocations)
      if (a.device == device_) protect(memory, a, how);
  }
  int device_;
};

// Allocation that holds a range of device memory; null where none does.
const Allocation* holder(const void* memory, size_t bytes) {
  State& s = state();
  auto* at = static_cast<std::byte*>(const_cast<void*>(memory));
  auto after = s.allocations.upper_bound(at);
  if (after == s.allocations.begin()) return nullptr;
  const auto& [begin, a] = *std::prev(after);
  return at + bytes <= begin + a.bytes && !a.freed ? &a : nullptr;
}
bool is_pinned(const void* memory, size_t bytes) {
  State& s = state();
  auto* at = static_cast<std::byte*>(const_cast<void*>(memory));
  auto after = s.pinned.upper_bound(at);
  if (after == s.pinned.begin()) return false;
  const auto& [begin, size] = *std::prev(after);
  return at + bytes <= begin + size;
}

// Everything that is there, to compare what two directions leave.
std::vector<std::byte> contents(int device) {
  std::vector<std::byte> all;
  for (const auto& [memory, a] : state().allocations)
    if (a.device == device) all.insert(all.end(), memory, memory + a.bytes);
  return all;
}
void put_back(int device, const std::vector<std::byte>& all) {
  const std::byte* from = all.data();
  for (const auto& [memory, a] : state().allocations) {
    if (a.device != device) continue;
    std::memcpy(memory, from, a.bytes);
    from += a.bytes;
  }
}

std::string run_in_orders(const Launch& launch, int device, const std::function<void()>& thread,
                          Orders orders) {
  if (orders == Orders::forward) return run_kernel(launch, Direction::forward, thread);
  if (orders == Orders::backward) return run_kernel(launch, Direction::backward, thread);
  const std::vector<std::byte> before = contents(device);
  std::string failure = run_kernel(launch, Direction::forward, thread);
  if (!failure.empty()) return failure;
  const std::vector<std::byte> forward = contents(device);
  put_back(device, before);
  failure = run_kernel(launch, Direction::backward, thread);
  if (!failure.empty()) return failure;
  const std::vector<std::byte> backward = contents(device);
  if (std::memcmp(forward.data(), backward.data(), forward.size()) == 0) return "";
  return fmt::format("{}: its results depend on the order of its threads", launch.kernel);
}

void run_queue() {
  State& s = state();
  while (!s.queue.empty()) {
    const int device = s.queue.front().device;
    const Opened opened(device);
    while (!s.queue.empty() && s.queue.front().device == device) {
      const Operation operation = std::move(s.queue.front());
      s.queue.pop_front();
      if (!s.failure.empty()) continue;
      const std::string failure = operation.run(s.orders);
      if (!failure.empty()) fail_device(failure);
    }
  }
}
void push(int device, std::function<std::string(Orders)> run) {
  State& s = state();
  s.queue.push_back({device, std::move(run)});
  if (s.queue.size() >= kMostQueued) run_queue();
}

void give_back(std::byte* memory) {
  State& s = state();
  const auto found = s.allocations.find(memory);
  const Allocation a = found->second;
  const bool whole = std::all_of(memory + a.bytes, memory + a.taken(),
                                 [](std::byte b) { return b == std::byte{kPoison}; });
  s.allocations.erase(found);
  munmap(pages_of(memory) - kPage, a.pages() + 2 * kPage);
  s.pools[a.device].used -= a.taken();
  if (!whole) fail(fmt::format("something wrote behind the end of {} bytes", a.bytes));
}

cudaError_t status() {
  return state().failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
cudaError_t refuse(cudaError_t error, const std::string& why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why.c_str());
  return state().last = error;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

void set_orders(Orders orders) {
  const Lock lock(state().mutex);
  run_queue();
  state().orders = orders;
}

void enqueue(const char* name, std::function<void()> operation) {
  const Lock lock(state().mutex);
  push(State::device,
       [name, operation = std::move(operation)](Orders) { return run_on_device(name, operation); });
}

void enqueue(const Launch& launch, const void* function, std::function<void()> thread) {
  State& s = state();
  const Lock lock(s.mutex);
  const auto asked = s.allowed.find(function);
  const size_t allowed = asked == s.allowed.end() ? kUnaskedSharedMemory : asked->second;
  const auto [x, y, z] = launch.grid;
  if (launch.block.count() == 0 || launch.block.count() > kMostThreads || launch.block.z > 64 ||
      launch.grid.count() == 0 || x > 0x7fffffffu || y > 65535 || z > 65535 ||
      launch.shared > allowed) {
    refuse(cudaErrorInvalidConfiguration,
           fmt::format("{} cannot be launched: {} x {} x {} blocks, {} threads, {} bytes of shared "
                       "memory of {} allowed",
                       launch.kernel, x, y, z, launch.block.count(), launch.shared, allowed));
    return;
  }
  push(State::device, [launch, device = State::device, thread = std::move(thread)](Orders orders) {
    return run_in_orders(launch, device, thread, orders);
  });
}

std::string take_failure() {
  State& s = state();
  const Lock lock(s.mutex);
  run_queue();
  s.last = cudaSuccess;
  return std::exchange(s.failure, {});
}

}  // namespace amur::emulation

using namespace amur::emulation;

cudaError_t cudaGetLastError() {
  const Lock lock(state().mutex);
  const cudaError_t error = std::exchange(state().last, cudaSuccess);
  return error == cudaSuccess ? status() : error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return state().failure.c_str();
    default:
      return "invalid argument";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaErrorInvalidValue";
  }
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"Emulated GPU", 9, 0, kMemory};
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  State::device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = &state().pools[device];
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  return attribute == cudaMemPoolAttrReleaseThreshold ? cudaSuccess : cudaErrorInvalidValue;
}
// Here the pool keeps nothing.
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const Lock lock(state().mutex);
  const bool most = attribute == cudaMemPoolAttrUsedMemHigh;
  *static_cast<uint64_t*>(value) = most ? pool->most : pool->used;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(state().mutex);
  *total = kMemory;
  *free = kMemory - state().pools[State::device].used;
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  State& s = state();
  const Lock lock(s.mutex);
  if (bytes == 0) return cudaErrorInvalidValue;
  const Allocation a{State::device, bytes};
  EmulatedPool& pool = s.pools[a.device];
  if (pool.used + a.taken() > kMemory) run_queue();
  if (bytes > kMemory || pool.used + a.taken() > kMemory) return s.last = cudaErrorMemoryAllocation;
  void* pages = mmap(nullptr, a.pages() + 2 * kPage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return s.last = cudaErrorMemoryAllocation;
  std::byte* begin = static_cast<std::byte*>(pages) + kPage + a.pages() - a.taken();
  protect(begin, a, PROT_READ | PROT_WRITE);
  std::memset(begin, kPoison, a.taken());
  protect(begin, a, PROT_NONE);
  s.allocations[begin] = a;
  pool.used += a.taken();
  pool.most = std::max(pool.most, pool.used);
  *memory = begin;
  return status();
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  State& s = state();
  const Lock lock(s.mutex);
  auto* begin = static_cast<std::byte*>(memory);
  const auto found = s.allocations.find(begin);
  if (found == s.allocations.end() || found->second.freed)
    return refuse(cudaErrorInvalidValue, "memory is freed that is not there");
  found->second.freed = true;
  push(found->second.device,
       [begin](Orders) { return run_on_device("free", [begin] { give_back(begin); }); });
  return status();
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const Lock lock(state().mutex);
  *memory = std::calloc(bytes, 1);
  state().pinned[static_cast<std::byte*>(*memory)] = bytes;
  return cudaSuccess;
}

// To and from pinned memory only: the copies of others would wait.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  const Lock lock(state().mutex);
  if (bytes == 0) return status();
  const bool source =
      kind == cudaMemcpyHostToDevice ? is_pinned(from, bytes) : holder(from, bytes) != nullptr;
  const bool target =
      kind == cudaMemcpyDeviceToHost ? is_pinned(to, bytes) : holder(to, bytes) != nullptr;
  if (!source || !target)
    return refuse(cudaErrorInvalidValue, fmt::format("a copy of {} bytes {} what is not there",
                                                     bytes, source ? "goes to" : "comes from"));
  enqueue("copy", [=] { std::memmove(to, from, bytes); });
  return status();
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  const Lock lock(state().mutex);
  if (bytes == 0) return status();
  if (!holder(memory, bytes))
    return refuse(cudaErrorInvalidValue, fmt::format("{} bytes are set that are not there", bytes));
  enqueue("memset", [=] { std::memset(memory, value, bytes); });
  return status();
}

// All streams are one queue.
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  const Lock lock(state().mutex);
  run_queue();
  return status();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return status();
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return status();
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}
// Emulated time says nothing: all takes as long.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = 1;
  return begin->recorded && end->recorded ? status() : cudaErrorInvalidValue;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return status();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = true;
  return status();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(state().mutex);
  if (event->recorded) run_queue();
  return status();
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  const Lock lock(state().mutex);
  if (value < 0 || static_cast<size_t>(value) > kMostSharedMemory)
    return refuse(cudaErrorInvalidValue,
                  fmt::format("{} bytes of shared memory are asked for", value));
  state().allowed[function] = static_cast<size_t>(value);
  return status();
}
