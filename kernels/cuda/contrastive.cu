#include "kernels/contrastive.h"

#include "kernels/cuda/column_sums.cuh"

namespace amur::cuda {
namespace {

// Merges what a tile adds to a running log-sum-exp.
template <class T>
__device__ void merge(T most, double sum, T* maximum, double* total) {
  *total = *total * exp(static_cast<double>(*maximum) - static_cast<double>(most)) + sum;
  *maximum = most;
}

// A block takes row after row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_statistics_kernel(int64_t m, int64_t n, const T* logits, T* maximum, double* sum) {
  for (int64_t i = blockIdx.x; i < m; i += gridDim.x) {
    const T* row = logits + i * n;
    T most = maximum[i];
    for (int64_t j = threadIdx.x; j < n; j += kThreads) most = row[j] > most ? row[j] : most;
    most = block_max(most);
    T part = 0;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) part += exp(row[j] - most);
    const double total = block_sum(static_cast<double>(part));
    if (threadIdx.x == 0) merge(most, total, maximum + i, sum + i);
  }
}

// A block takes kColumnsOfTile columns, a line of its threads every kLinesOfTile-th row of them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_statistics_kernel(int64_t m, int64_t n, const T* logits, T* maximum, double* sum) {
  __shared__ T tops[kLinesOfTile][kColumnsOfTile];
  __shared__ double sums[kLinesOfTile][kColumnsOfTile];
  const int lane = static_cast<int>(threadIdx.x) % kColumnsOfTile;
  const int line = static_cast<int>(threadIdx.x) / kColumnsOfTile;
  const int64_t column = int64_t{blockIdx.x} * kColumnsOfTile + lane;
  const bool there = column < n;
  T most = there ? maximum[column] : T(0);
  for (int64_t i = line; there && i < m; i += kLinesOfTile) {
    const T z = logits[i * n + column];
    most = z > most ? z : most;
  }
  tops[line][lane] = most;
  __syncthreads();
  for (int l = 0; l < kLinesOfTile; ++l) most = tops[l][lane] > most ? tops[l][lane] : most;
  T part = 0;
  for (int64_t i = line; there && i < m; i += kLinesOfTile)
    part += exp(logits[i * n + column] - most);
  sums[line][lane] = static_cast<double>(part);
  __syncthreads();
  if (line != 0 || !there) return;
  double total = 0;
  for (int l = 0; l < kLinesOfTile; ++l) total += sums[l][lane];
  merge(most, total, maximum + column, sum + column);
}

// of_row[i] = the row's part of sum G Z. The column arrays may be null.
template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_gradient_kernel(int64_t m, int64_t n, T* logits, const T* row_maximum,
                            const T* row_factor, const T* column_maximum, const T* column_factor,
                            double* of_row) {
  for (int64_t i = blockIdx.x; i < m; i += gridDim.x) {
    T* row = logits + i * n;
    const T most = row_maximum[i], factor = row_factor[i];
    T part = 0;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      const T z = row[j];
      T g = exp(z - most) * factor;
      if (column_maximum) g += exp(z - column_maximum[j]) * column_factor[j];
      part += g * z;
      row[j] = g;
    }
    const double sum = block_sum(static_cast<double>(part));
    if (threadIdx.x == 0) of_row[i] = sum;
  }
}

// of_row [3, m]: the row's parts of loss, sum G and sum G Z.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_kernel(int64_t m, int64_t n, T* logits, T bias, const T* row_weight, double* of_row) {
  for (int64_t i = blockIdx.x; i < m; i += gridDim.x) {
    T* row = logits + i * n;
    const T weight = row_weight[i];
    T loss = 0, gradient = 0, gradient_z = 0;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      const T z = row[j], s = z + bias;
      const T e = exp(s < 0 ? s : -s);
      loss += (s > 0 ? s : T(0)) + log1p(e);
      const T g = (s < 0 ? e : T(1)) / (e + T(1)) * weight;
      gradient += g;
      gradient_z += g * z;
      row[j] = g;
    }
    const double sums[3] = {static_cast<double>(weight) * block_sum(static_cast<double>(loss)),
                            block_sum(static_cast<double>(gradient)),
                            block_sum(static_cast<double>(gradient_z))};
    if (threadIdx.x == 0)
      for (int k = 0; k < 3; ++k) of_row[k * m + i] = sums[k];
  }
}

unsigned blocks_for_each_row(int64_t m) {
  return static_cast<unsigned>(std::min(m, kMostBlocks));
}

}  // namespace

void CudaBackend::contrastive_statistics(ConstTensorView logits, TensorView row_maximum,
                                         TensorView row_sum, TensorView column_maximum,
                                         TensorView column_sum, Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows(), n = logits.columns();
  dispatch_f32_f64(logits.dtype(), "contrastive_statistics", [&]<class T>() {
    row_statistics_kernel<T><<<blocks_for_each_row(m), kThreads, 0, s>>>(
        m, n, logits.as<T>(), row_maximum.as<T>(), row_sum.as<double>());
    check_launch();
    if (!column_maximum.defined()) return;
    const auto tiles = static_cast<unsigned>((n + kColumnsOfTile - 1) / kColumnsOfTile);
    column_statistics_kernel<T><<<tiles, kThreads, 0, s>>>(
        m, n, logits.as<T>(), column_maximum.as<T>(), column_sum.as<double>());
    check_launch();
  });
}

double CudaBackend::contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                                 ConstTensorView row_factor,
                                                 ConstTensorView column_maximum,
                                                 ConstTensorView column_factor, Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows();
  const Scratch of_row(static_cast<size_t>(m) * sizeof(double), logits.device(), stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_softmax_gradient", [&]<class T>() {
    softmax_gradient_kernel<T><<<blocks_for_each_row(m), kThreads, 0, s>>>(
        m, logits.columns(), logits.as<T>(), row_maximum.as<T>(), row_factor.as<T>(),
        pointer_of<T>(column_maximum), pointer_of<T>(column_factor), of_row.as<double>());
  });
  check_launch();
  double sum = 0;
  sums_to_host(of_row.as<double>(), 1, m, &sum, logits.device(), stream);
  return sum;
}

SigmoidSums CudaBackend::contrastive_sigmoid(TensorView logits, double bias,
                                             ConstTensorView row_weight, Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows();
  const Scratch of_row(static_cast<size_t>(3 * m) * sizeof(double), logits.device(), stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_sigmoid", [&]<class T>() {
    sigmoid_kernel<T><<<blocks_for_each_row(m), kThreads, 0, s>>>(
        m, logits.columns(), logits.as<T>(), static_cast<T>(bias), row_weight.as<T>(),
        of_row.as<double>());
  });
  check_launch();
  double sums[3] = {};
  sums_to_host(of_row.as<double>(), 3, m, sums, logits.device(), stream);
  return {sums[0], sums[1], sums[2]};
}

}  // namespace amur::cuda
