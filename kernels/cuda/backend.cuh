// The CUDA back end, and what its sources share.
//
// Kernels are ordered by streams; sums have one fixed order, whatever the device: no atomics. The
// module is compiled without contraction to fused multiply-adds, as the CPU's kernels are, so that
// per-element arithmetic gives the same bits on both.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/device_kernels.h"

namespace amur::cuda {

void check(cudaError_t status, const char* call, CallSite site);
#define AMUR_CUDA_CHECK(call) ::amur::cuda::check(call, #call, ::amur::CallSite::here())

inline cudaStream_t stream_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle());
}
// What every launch begins with, and what it ends with: a launch itself gives no status.
inline cudaStream_t enter(Device device, Stream stream) {
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  return stream_of(stream);
}
inline void check_launch(CallSite site = CallSite::here()) {
  check(cudaGetLastError(), "kernel launch", site);
}

// One-dimensional launches with a loop of stride gridDim.x * blockDim.x over the work.
inline constexpr int kThreads = 256;
inline constexpr int64_t kMostBlocks = 4096;  // several waves of every device
inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(
      std::clamp((items + kThreads - 1) / kThreads, int64_t{1}, kMostBlocks));
}
__device__ inline int64_t first_item() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ inline int64_t item_stride() {
  return int64_t{gridDim.x} * blockDim.x;
}

// The sum over a block of kThreads threads, in one fixed order; every thread gets it.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += parts[w];
  __syncthreads();  // the parts may be written again
  return sum;
}

// Work space that lives until the work queued before its end is done.
class Scratch {
 public:
  Scratch(size_t bytes, Device device, Stream stream);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  cudaStream_t stream_;
  void* memory_ = nullptr;
};

class CudaBackend final : public DeviceKernels {
 public:
  // memory.cu
  std::string library_text() const override;
  GpuProbe probe() const override;
  void* allocate(size_t bytes, Device device) override;
  void release(void* memory, Device device) noexcept override;
  void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
            Stream stream) override;
  void fill_zero(void* memory, Device device, size_t bytes, Stream stream) override;
  void synchronize(Stream stream) override;
  void* create_event(Device device) override;
  void destroy_event(void* event) noexcept override;
  void record(void* event, Stream stream) override;
  void wait(void* event, Stream stream) override;

  // optimizer_update.cu
  void sign_update(ConstTensorView momentum, double rate, double decay, TensorView theta,
                   Stream stream) override;
  void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                          TensorView theta, Stream stream) override;
  void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                           std::span<const double> rates, double rms_floor, double decay,
                           TensorView theta, Stream stream) override;
  void bounded_update(ConstTensorView momentum, double rate, double threshold, TensorView theta,
                      Stream stream) override;
  void lion_update(ConstTensorView gradient, const LionStep& step, TensorView momentum,
                   TensorView theta, Stream stream) override;
  void adamw_update(ConstTensorView gradient, const AdamWStep& step, TensorView first_moment,
                    TensorView second_moment, TensorView theta, Stream stream) override;

  // activation.cu
  void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y,
                          Stream stream) override;
  void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                           TensorView du, Stream stream) override;

  // norm.cu
  void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain, ConstTensorView bias,
                    double eps, TensorView y, TensorView mean, TensorView rstd,
                    int64_t statistics_width, Stream stream) override;
  void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x, ConstTensorView gain,
                     ConstTensorView mean, ConstTensorView rstd, ConstTensorView residual,
                     TensorView dx, double sink_scale, TensorView gain_sink, TensorView bias_sink,
                     int64_t statistics_width, Stream stream) override;

  // elementwise.cu
  void cast(ConstTensorView from, TensorView to, Stream stream) override;
  void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) override;
  void scale(double alpha, TensorView x, Stream stream) override;
  void add_bias(ConstTensorView bias, TensorView y, Stream stream) override;
  void accumulate_column_sums(double alpha, ConstTensorView dy, TensorView sink,
                              Stream stream) override;
  double sum_of_squares(ConstTensorView x) override;
  bool all_finite(ConstTensorView x) override;
  void dropout_add(const PackedSequences& packed, const DropoutSite& site, ConstTensorView x,
                   ConstTensorView residual, TensorView y, Stream stream) override;
};

}  // namespace amur::cuda
