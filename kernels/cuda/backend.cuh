// The CUDA back end, and what its sources share.
//
// Kernels are ordered by streams; sums have one fixed order, whatever the device: no atomics. The
// module is compiled without contraction to fused multiply-adds, as the CPU's kernels are, so that
// per-element arithmetic gives the same bits on both.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
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

// Of a launch of blocks_for(items).
__device__ inline int64_t first_item() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ inline int64_t item_stride() {
  return int64_t{gridDim.x} * blockDim.x;
}

// The sum over a warp, in one fixed order; every lane gets it.
template <class T>
__device__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over a block of kThreads threads, in one fixed order; every thread gets it.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T parts[kThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += parts[w];
  __syncthreads();  // the parts may be written again
  return sum;
}

// The largest of a block of kThreads threads; every thread gets it.
template <class T>
__device__ T block_max(T value) {
  __shared__ T parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T most = parts[0];
  for (int w = 1; w < kThreads / 32; ++w) most = parts[w] > most ? parts[w] : most;
  __syncthreads();  // the parts may be written again
  return most;
}

// results[k] = the sum of parts[k, :], in one fixed order; parts [count, n] lie on the GPU, the
// results on the host, which waits for them.
void sums_to_host(const double* parts, int64_t count, int64_t n, double* results, Device device,
                  Stream stream);

// sums[k] += the sum of parts[k, :], in one fixed order; all on the GPU.
void add_sums(const double* parts, int64_t count, int64_t n, double* sums, Device device,
              Stream stream);

// "cuBLASLt 13.1.0"; asks no device.
std::string gemm_text();

// A tensor's elements, or null where there is none.
template <class T, class View>
auto pointer_of(View view) {
  return view.defined() ? view.template as<T>() : nullptr;
}

// Work space that lives until the work queued before its end is done; of no bytes: null.
class Scratch {
 public:
  // Throws MemoryError.
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
  void* memory_;
};

class CudaBackend final : public DeviceKernels {
 public:
  // memory.cu
  std::string library_text() const override;
  GpuProbe probe() const override;
  void* allocate(size_t bytes, Device device) override;
  void release(void* memory, Device device) noexcept override;
  size_t peak_bytes(Device device) const override;
  size_t free_bytes(Device device) const override;
  void copy(void* to, Device to_device, const void* from, Device from_device, size_t bytes,
            Stream stream) override;
  void fill_zero(void* memory, Device device, size_t bytes, Stream stream) override;
  void synchronize(Stream stream) override;
  void* create_event(Device device) override;
  void destroy_event(void* event) noexcept override;
  void record(void* event, Stream stream) override;
  void wait(void* event, Stream stream) override;

  // optimizer_update.cu
  void update_parameters(std::span<const ParameterUpdate> updates, Stream stream) override;
  void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor, double decay,
                          TensorView theta, const StochasticRounding& rounding,
                          Stream stream) override;
  void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                           std::span<const double> rates, double rms_floor, double decay,
                           TensorView theta, const StochasticRounding& rounding,
                           Stream stream) override;

  // activation.cu
  void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y,
                          Stream stream) override;
  void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                           TensorView du, const ActivationExtras& also, Stream stream) override;

  // norm.cu
  void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain, ConstTensorView bias,
                    double eps, TensorView y, TensorView mean, TensorView rstd,
                    int64_t statistics_width, Stream stream) override;
  void add_norm_forward(const PackedSequences& packed, const DropoutSite& site, ConstTensorView x,
                        ConstTensorView residual, TensorView y, NormKind kind, ConstTensorView gain,
                        ConstTensorView bias, double eps, TensorView n, TensorView mean,
                        TensorView rstd, int64_t statistics_width, Stream stream) override;
  void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x, ConstTensorView gain,
                     ConstTensorView mean, ConstTensorView rstd, ConstTensorView residual,
                     TensorView dx, double sink_scale, TensorView gain_sink, TensorView bias_sink,
                     int64_t statistics_width, Stream stream) override;

  // elementwise.cu
  void cast(ConstTensorView from, TensorView to, Stream stream) override;
  void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) override;
  void scale(double alpha, std::span<const TensorView> tensors, Stream stream) override;
  void add_bias(ConstTensorView bias, TensorView y, Stream stream) override;
  void accumulate_column_sums(ConstTensorView dy, std::span<const ColumnSink> parts,
                              Stream stream) override;
  void join(std::span<const ConstTensorView> parts, TensorView row, Stream stream) override;
  std::vector<double> sums_of_squares(std::span<const ConstTensorView> tensors) override;
  void mark_not_finite(std::span<const ConstTensorView> tensors, TensorView flags,
                       Stream stream) override;
  void dropout_add(const PackedSequences& packed, const DropoutSite& site, ConstTensorView x,
                   ConstTensorView residual, TensorView y, Stream stream) override;
  void dropout_backward_sums(const PackedSequences& packed, const DropoutSite& site,
                             ConstTensorView dy, TensorView dx, const ColumnSink& sums,
                             Stream stream) override;
  void gate_forward(ConstTensorView gate, ConstTensorView x, TensorView y, Stream stream) override;
  void gate_backward(ConstTensorView gate, ConstTensorView dy, ConstTensorView x, double sink_scale,
                     TensorView y, TensorView dx, TensorView sink, Stream stream) override;

  // gemm.cu
  void gemm(Transpose transpose_a, Transpose transpose_b, double alpha, ConstTensorView a,
            ConstTensorView b, ConstTensorView bias, double beta, TensorView c,
            Stream stream) override;
  std::map<std::string, std::string> measure_products(
      std::span<const Product> products, const std::map<std::string, std::string>& known,
      Device device) override;
  void use_product_choices(const std::map<std::string, std::string>& choices) override;

  // embedding.cu
  void embedding_forward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView tokens,
                         ConstTensorView positions, TensorView y, TableRows rows,
                         Stream stream) override;
  void embedding_backward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView dy,
                          double sink_scale, TensorView tokens_sink, TensorView positions_sink,
                          TableRows rows, Stream stream) override;
  void add_sinusoidal_positions(const PackedSequences& packed, TensorView y,
                                Stream stream) override;
  void pooling_forward(PoolingKind kind, const PackedSequences& packed, ConstTensorView x,
                       TensorView h, Stream stream) override;
  void pooling_backward(PoolingKind kind, const PackedSequences& packed, ConstTensorView dh,
                        TensorView dx, Stream stream) override;
  void normalise_forward(ConstTensorView h, TensorView z, TensorView norm, Stream stream) override;
  void normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm,
                          TensorView dh, Stream stream) override;

  // rows.cu
  void move_rows(ConstTensorView from, std::span<const int32_t> from_index,
                 std::span<const int32_t> to_index, TensorView to, Stream stream) override;
  void scale_rows(TensorView x, std::span<const int64_t> rows, std::span<const double> factors,
                  Stream stream) override;
  double sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows) override;
  bool all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows) override;

  // attention.cu, attention_bf16.cu
  void attention_forward(const PackedSequences& packed, ConstTensorView qkv, double scale,
                         const DropoutSite& dropout, TensorView o, TensorView lse, int64_t window,
                         Stream stream) override;
  void attention_backward(const PackedSequences& packed, ConstTensorView d_output,
                          ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                          double scale, const DropoutSite& dropout, TensorView dqkv, int64_t window,
                          Stream stream) override;
  AttentionEngines use_attention_engines(const AttentionEngines& engines) override;
  std::string other_attention_library() const override;
  std::string cudnn_problem(const AttentionKind& kind, int64_t sequences, Device device) override;
  void rotary(const PackedSequences& packed, double base, int64_t period, bool inverse,
              TensorView qkv, Stream stream) override;

  // contrastive.cu
  void contrastive_statistics(const LogitTile& tile, const LogSums& rows, const LogSums& columns,
                              TensorView positive_logit, TensorView masked, Stream stream) override;
  void merge_log_sums(const LogSums& sums, Stream stream) override;
  void contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                    ConstTensorView row_factor, ConstTensorView column_maximum,
                                    ConstTensorView column_factor,
                                    ConstTensorView positive_gradient, TensorView sum,
                                    TensorView gradient, Stream stream) override;
  void contrastive_sigmoid(const LogitTile& tile, double bias, double weight, TensorView sums,
                           TensorView gradient, Stream stream) override;
  std::vector<double> sums_of_parts(ConstTensorView parts, Stream stream) override;
  void softmax_step(SoftmaxStep step, const SoftmaxEnds& ends, Stream stream) override;

 private:
  // Whether cuDNN is to compute this.
  bool wants_cudnn(AttentionDirection direction, const PackedSequences& packed, ConstTensorView qkv,
                   const DropoutSite& dropout, int64_t window) const;

  AttentionEngines attention_engines_;
};

}  // namespace amur::cuda
