#include <cstdint>

#include "kernels/cuda/backend.cuh"

// Set by the build: the headers between program and module, and what the device code is for.
static_assert(sizeof(AMUR_DEVICE_INTERFACE) > 1 && sizeof(AMUR_CUDA_TARGETS) > 1);

namespace amur::cuda {
namespace {

constexpr int kOldestMajor = 8;  // sm_80; kernels/cuda/CMakeLists.txt names the rest
constexpr const char* kOldestText = "8.0";

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Freed blocks stay with the pool of the device: without it every allocation would wait for the
// device.
void keep_freed_memory(int device) {
  cudaMemPool_t pool = nullptr;
  AMUR_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device));
  uint64_t everything = UINT64_MAX;
  AMUR_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything));
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
  return fmt::format("CUDA {} ({}), {}", version_text(runtime), AMUR_CUDA_TARGETS, gemm_text());
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
  for (int i = 0; i < count; ++i) keep_freed_memory(i);
  return found;
}

// Blocks come and go in the order of the default stream, which waits for the other streams of the
// device and they for it.
void* CudaBackend::allocate(size_t bytes, Device device) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  void* memory = nullptr;
  const cudaError_t status = cudaMallocAsync(&memory, std::max<size_t>(bytes, 1), nullptr);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    AMUR_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw UsageError(
        "{}: {:.3f} GiB were asked for, but only {:.3f} of {:.3f} GiB are free; use a smaller "
        "train.activation_budget or train.chunk_tokens",
        device.text(), static_cast<double>(bytes) / (1 << 30),
        static_cast<double>(free) / (1 << 30), static_cast<double>(total) / (1 << 30));
  }
  AMUR_CUDA_CHECK(status);
  return memory;
}

// Nobody could act on an error here; one of an earlier kernel is seen by the next call.
void CudaBackend::release(void* memory, Device device) noexcept {
  if (cudaSetDevice(device.index) == cudaSuccess) cudaFreeAsync(memory, nullptr);
}

void CudaBackend::copy(void* to, Device to_device, const void* from, Device from_device,
                       size_t bytes, Stream stream) {
  const bool all_on_gpu =
      to_device.kind == Device::Kind::cuda && from_device.kind == Device::Kind::cuda;
  const Device gpu = to_device.kind == Device::Kind::cuda ? to_device : from_device;
  AMUR_CUDA_CHECK(cudaSetDevice(gpu.index));
  AMUR_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)));
  if (!all_on_gpu) AMUR_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
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

Scratch::Scratch(size_t bytes, Device device, Stream stream) : stream_(stream_of(stream)) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  AMUR_CUDA_CHECK(cudaMallocAsync(&memory_, std::max<size_t>(bytes, 1), stream_));
}

Scratch::~Scratch() {
  cudaFreeAsync(memory_, stream_);
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
