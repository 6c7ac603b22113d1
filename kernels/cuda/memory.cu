#include <array>
#include <atomic>
#include <cstdint>

#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/staging.cuh"

// Set by the build: the headers between program and module, and what the device code is for.
static_assert(sizeof(AMUR_DEVICE_INTERFACE) > 1 && sizeof(AMUR_CUDA_TARGETS) > 1);

namespace amur::cuda {
namespace {

constexpr int kOldestMajor = 8;  // sm_80; kernels/cuda/CMakeLists.txt names the rest
constexpr const char* kOldestText = "8.0";

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

cudaMemPool_t pool_of(int device) {
  cudaMemPool_t pool = nullptr;
  AMUR_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device));
  return pool;
}

// Freed blocks stay with the pool of the device: without it every allocation would wait for the
// device. Asked of a device when it is first used: a rank shall not begin with contexts on the GPUs
// of others.
void keep_freed_memory(int device) {
  constexpr size_t kMostGpus = 64;  // as src/core/device.cpp
  static std::array<std::atomic<bool>, kMostGpus> done;
  std::atomic<bool>& is_done = done.at(static_cast<size_t>(device));
  if (is_done.load(std::memory_order_relaxed)) [[likely]]
    return;
  uint64_t everything = UINT64_MAX;
  AMUR_CUDA_CHECK(
      cudaMemPoolSetAttribute(pool_of(device), cudaMemPoolAttrReleaseThreshold, &everything));
  is_done = true;
}

size_t pool_bytes(int device, cudaMemPoolAttr attribute) {
  uint64_t bytes = 0;
  AMUR_CUDA_CHECK(cudaMemPoolGetAttribute(pool_of(device), attribute, &bytes));
  return bytes;
}

// What the pool has kept is free too.
size_t free_bytes_of(int device, size_t& total) {
  AMUR_CUDA_CHECK(cudaSetDevice(device));
  size_t free = 0;
  AMUR_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free + pool_bytes(device, cudaMemPoolAttrReservedMemCurrent) -
         pool_bytes(device, cudaMemPoolAttrUsedMemCurrent);
}

void* allocate_in(cudaStream_t stream, size_t bytes, Device device) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  keep_freed_memory(device.index);
  void* memory = nullptr;
  const auto allocate = [&] {
    return cudaMallocAsync(&memory, std::max<size_t>(bytes, 1), stream);
  };
  cudaError_t status = allocate();
  if (status == cudaErrorMemoryAllocation) {
    // What the pool keeps in pieces that are too small is given back.
    cudaGetLastError();
    AMUR_CUDA_CHECK(cudaStreamSynchronize(stream));
    AMUR_CUDA_CHECK(cudaMemPoolTrimTo(pool_of(device.index), 0));
    status = allocate();
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t total = 0;
    const size_t free = free_bytes_of(device.index, total);
    throw MemoryError(device, bytes, free, total);
  }
  AMUR_CUDA_CHECK(status);
  return memory;
}

}  // namespace

void check(cudaError_t status, const char* call, CallSite site) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();  // leaves no error behind for a later call
  throw InternalError(
      fmt::format("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status)), site);
}

std::string CudaBackend::library_text() const {
  int runtime = 0;
  AMUR_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  return fmt::format(
      "CUDA {} ({}), {}, {}", version_text(runtime), AMUR_CUDA_TARGETS, gemm_text(),
      find_cudnn().usable() ? find_cudnn().text : "no cuDNN: " + find_cudnn().problem);
}

GpuProbe CudaBackend::probe() const {
  GpuProbe found;
  int driver = 0, runtime = 0, count = 0;
  AMUR_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    if (status == cudaErrorInsufficientDriver) {
      found.problem = driver == 0 ? "the NVIDIA driver does not answer"
                                  : fmt::format(
                                        "the NVIDIA driver knows CUDA {} only, but CUDA {} "
                                        "is needed",
                                        version_text(driver), version_text(runtime));
      found.remedy = "install a newer driver";
    } else if (status == cudaErrorNoDevice) {
      found.problem = "no NVIDIA GPU is visible";
      found.remedy = "look at CUDA_VISIBLE_DEVICES and at nvidia-smi";
    } else {
      found.problem = fmt::format("CUDA does not start: {} ({})", cudaGetErrorString(status),
                                  cudaGetErrorName(status));
      found.remedy = "look at nvidia-smi";
    }
    return found;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    AMUR_CUDA_CHECK(cudaGetDeviceProperties(&properties, i));
    found.gpus.push_back(
        {properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  if (count == 0) {
    found.problem = "no NVIDIA GPU is visible";
    found.remedy = "look at CUDA_VISIBLE_DEVICES and at nvidia-smi";
    return found;
  }
  for (const GpuInfo& gpu : found.gpus) {
    if (gpu.major >= kOldestMajor) continue;
    found.problem = fmt::format("{} is too old: compute capability {} or newer is needed",
                                gpu.text(), kOldestText);
    found.remedy = "leave it out with CUDA_VISIBLE_DEVICES";
    return found;
  }
  return found;
}

// Blocks come and go in the order of the default stream. NCCL's streams do not wait for it, nor it
// for them: who gives memory to one of those joins it before the memory is released.
void* CudaBackend::allocate(size_t bytes, Device device) {
  return allocate_in(nullptr, bytes, device);
}

size_t CudaBackend::peak_bytes(Device device) const {
  return pool_bytes(device.index, cudaMemPoolAttrUsedMemHigh);
}

size_t CudaBackend::free_bytes(Device device) const {
  size_t total = 0;
  return free_bytes_of(device.index, total);
}

// Nobody could act on an error here; one of an earlier kernel is seen by the next call.
void CudaBackend::release(void* memory, Device device) noexcept {
  if (cudaSetDevice(device.index) == cudaSuccess) cudaFreeAsync(memory, nullptr);
}

void CudaBackend::copy(void* to, Device to_device, const void* from, Device from_device,
                       size_t bytes, Stream stream) {
  const cudaStream_t s = stream_of(stream);
  if (from_device.kind == Device::Kind::cpu) return copy_to_device(to, from, bytes, to_device, s);
  if (to_device.kind == Device::Kind::cpu) return copy_to_host(to, from, bytes, from_device, s);
  AMUR_CUDA_CHECK(cudaSetDevice(to_device.index));
  AMUR_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s));
}

void CudaBackend::fill_zero(void* memory, Device device, size_t bytes, Stream stream) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  AMUR_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
}

void CudaBackend::synchronize(Stream stream) {
  AMUR_CUDA_CHECK(cudaSetDevice(stream.device().index));
  AMUR_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
}

void* CudaBackend::create_event(Device device) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  cudaEvent_t event = nullptr;
  AMUR_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

void CudaBackend::destroy_event(void* event) noexcept {
  cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void CudaBackend::record(void* event, Stream stream) {
  AMUR_CUDA_CHECK(cudaSetDevice(stream.device().index));
  AMUR_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(stream)));
}

void CudaBackend::wait(void* event, Stream stream) {
  AMUR_CUDA_CHECK(cudaSetDevice(stream.device().index));
  AMUR_CUDA_CHECK(cudaStreamWaitEvent(stream_of(stream), static_cast<cudaEvent_t>(event), 0));
}

Scratch::Scratch(size_t bytes, Device device, Stream stream)
    : stream_(stream_of(stream)), memory_(bytes ? allocate_in(stream_, bytes, device) : nullptr) {}

Scratch::~Scratch() {
  if (memory_) cudaFreeAsync(memory_, stream_);
}

}  // namespace amur::cuda

extern "C" {
__attribute__((visibility("default"))) const char* amur_device_interface() {
  return AMUR_DEVICE_INTERFACE;
}
__attribute__((visibility("default"))) amur::DeviceBackend* amur_device_backend() {
  static amur::cuda::CudaBackend backend;
  return &backend;
}
}
