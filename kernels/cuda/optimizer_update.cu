// One pass over memory each: a thread reads an element of everything, applies the rule of
// kernels/optimizer_rules.h and writes back.
#include "kernels/optimizer_update.h"

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    sign_kernel(const T* m, int64_t n, T rate, T decay, T* theta) {
  for (int64_t i = first_item(); i < n; i += item_stride())
    theta[i] = sign_step(theta[i], m[i], rate, decay);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    bounded_kernel(const T* m, int64_t n, T rate, T threshold, T* theta) {
  for (int64_t i = first_item(); i < n; i += item_stride())
    theta[i] = bounded_step(theta[i], m[i], rate, threshold);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    lion_kernel(LionRule<T> rule, const T* g, int64_t n, T* m, T* theta) {
  for (int64_t i = first_item(); i < n; i += item_stride()) rule(g[i], m[i], theta[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(AdamWRule<T> rule, const T* g, int64_t n, T* m, T* v, T* theta) {
  for (int64_t i = first_item(); i < n; i += item_stride()) rule(g[i], m[i], v[i], theta[i]);
}

// A block takes row after row: its RMS in double, then its step. `rows` and `rates` are null where
// it is all rows at one rate.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sign_by_row_kernel(const T* m, int64_t count, int64_t width, const int64_t* rows,
                       const double* rates, double rate, double rms_floor, T decay, T* theta) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t at = (rows ? rows[k] : k) * width;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < width; j += kThreads) {
      const double x = static_cast<double>(theta[at + j]);
      sum += x * x;
    }
    const double rms = sqrt(block_sum(sum) / static_cast<double>(width));
    const T step = static_cast<T>((rates ? rates[k] : rate) * (rms > rms_floor ? rms : rms_floor));
    for (int64_t j = threadIdx.x; j < width; j += kThreads)
      theta[at + j] = sign_step(theta[at + j], m[at + j], step, decay);
  }
}

template <class T>
void sign_by_row(ConstTensorView momentum, int64_t count, const int64_t* rows, const double* rates,
                 double rate, double rms_floor, double decay, TensorView theta,
                 cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min(count, kMostBlocks));
  sign_by_row_kernel<<<blocks, kThreads, 0, stream>>>(momentum.as<T>(), count, theta.columns(),
                                                      rows, rates, rate, rms_floor,
                                                      static_cast<T>(decay), theta.as<T>());
  check_launch();
}

}  // namespace

void CudaBackend::sign_update(ConstTensorView momentum, double rate, double decay, TensorView theta,
                              Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const int64_t n = theta.elements();
  dispatch_f32_f64(theta.dtype(), "sign_update", [&]<class T>() {
    sign_kernel<<<blocks_for(n), kThreads, 0, s>>>(momentum.as<T>(), n, static_cast<T>(rate),
                                                   static_cast<T>(decay), theta.as<T>());
  });
  check_launch();
}

void CudaBackend::sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor,
                                     double decay, TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  dispatch_f32_f64(theta.dtype(), "sign_update_by_row", [&]<class T>() {
    sign_by_row<T>(momentum, theta.rows(), nullptr, nullptr, rate, rms_floor, decay, theta, s);
  });
}

void CudaBackend::sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                      std::span<const double> rates, double rms_floor, double decay,
                                      TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const Scratch scratch(rows.size_bytes() + rates.size_bytes(), theta.device(), stream);
  auto* device_rows = scratch.as<int64_t>();
  auto* device_rates = reinterpret_cast<double*>(device_rows + rows.size());
  AMUR_CUDA_CHECK(
      cudaMemcpyAsync(device_rows, rows.data(), rows.size_bytes(), cudaMemcpyHostToDevice, s));
  AMUR_CUDA_CHECK(
      cudaMemcpyAsync(device_rates, rates.data(), rates.size_bytes(), cudaMemcpyHostToDevice, s));
  dispatch_f32_f64(theta.dtype(), "sign_update_of_rows", [&]<class T>() {
    sign_by_row<T>(momentum, std::ssize(rows), device_rows, device_rates, 0, rms_floor, decay,
                   theta, s);
  });
  AMUR_CUDA_CHECK(cudaStreamSynchronize(s));  // the caller's rows and rates may go now
}

void CudaBackend::bounded_update(ConstTensorView momentum, double rate, double threshold,
                                 TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const int64_t n = theta.elements();
  dispatch_f32_f64(theta.dtype(), "bounded_update", [&]<class T>() {
    bounded_kernel<<<blocks_for(n), kThreads, 0, s>>>(momentum.as<T>(), n, static_cast<T>(rate),
                                                      static_cast<T>(threshold), theta.as<T>());
  });
  check_launch();
}

void CudaBackend::lion_update(ConstTensorView gradient, const LionStep& step, TensorView momentum,
                              TensorView theta, Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const int64_t n = theta.elements();
  dispatch_f32_f64(theta.dtype(), "lion_update", [&]<class T>() {
    lion_kernel<<<blocks_for(n), kThreads, 0, s>>>(step.rule<T>(), gradient.as<T>(), n,
                                                   momentum.as<T>(), theta.as<T>());
  });
  check_launch();
}

void CudaBackend::adamw_update(ConstTensorView gradient, const AdamWStep& step,
                               TensorView first_moment, TensorView second_moment, TensorView theta,
                               Stream stream) {
  const cudaStream_t s = enter(theta.device(), stream);
  const int64_t n = theta.elements();
  dispatch_f32_f64(theta.dtype(), "adamw_update", [&]<class T>() {
    adamw_kernel<<<blocks_for(n), kThreads, 0, s>>>(step.rule<T>(), gradient.as<T>(), n,
                                                    first_moment.as<T>(), second_moment.as<T>(),
                                                    theta.as<T>());
  });
  check_launch();
}

}  // namespace amur::cuda
