#include "kernels/contrastive.h"

#include "kernels/contrastive_math.h"
#include "kernels/cuda/column_sums.cuh"

namespace amur::cuda {
namespace {

// Exclusions by plain pointers; those by row begin at the tile's first row.
struct Exclusions {
  const int64_t *positive, *self, *first_range, *ranges;
  const int32_t* columns;
};

// The first of columns[first .. last-1] that is not below `value`, or `last`.
__device__ int64_t lower_bound(const int32_t* columns, int64_t first, int64_t last, int64_t value) {
  while (first < last) {
    const int64_t middle = first + (last - first) / 2;
    if (columns[middle] < value)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

// A block takes row after row, its threads the columns of a range; of_row, which may be null, gets
// the row's number of masked entries.
template <class T>
__global__ void __launch_bounds__(kThreads)
    exclude_kernel(int64_t m, int64_t n, int64_t first_column, Exclusions exclusions, T* logits,
                   double* positive_logit, double* of_row) {
  constexpr T kMasked = kMaskedLogit;
  for (int64_t i = blockIdx.x; i < m; i += gridDim.x) {
    T* row = logits + i * n;
    const int64_t positive = exclusions.positive[i] - first_column;
    if (threadIdx.x == 0) {
      const int64_t self = exclusions.self[i] - first_column;
      if (positive >= 0 && positive < n) {
        if (positive_logit) positive_logit[i] = static_cast<double>(row[positive]);
        row[positive] = kMasked;
      }
      if (self >= 0 && self < n) row[self] = kMasked;
    }
    double masked = 0;
    for (int64_t r = exclusions.first_range[i]; r < exclusions.first_range[i + 1]; ++r) {
      __syncthreads();  // ranges overlap: an entry counts once
      const int64_t last = exclusions.ranges[2 * r + 1];
      int64_t k = lower_bound(exclusions.columns, exclusions.ranges[2 * r], last, first_column);
      for (k += threadIdx.x; k < last; k += kThreads) {
        const int64_t j = exclusions.columns[k] - first_column;
        if (j >= n) break;
        if (j == positive || row[j] == kMasked) continue;
        row[j] = kMasked;
        masked += 1;
      }
    }
    if (!of_row) continue;
    masked = block_sum(masked);
    if (threadIdx.x == 0) of_row[i] = masked;
  }
}

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

// Positives by plain pointers.
struct Positives {
  const int64_t* column;
  int64_t first_column;
  const double* value;

  // Place of row i's positive in a tile of n columns, -1 where it is not there.
  __device__ int64_t place(int64_t i, int64_t n) const {
    const int64_t j = column[i] - first_column;
    return j >= 0 && j < n ? j : -1;
  }
};

// of_row[i] = the row's part of sum G Z. The column arrays may be null.
template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_gradient_kernel(int64_t m, int64_t n, T* logits, const T* row_maximum,
                            const T* row_factor, const T* column_maximum, const T* column_factor,
                            Positives positives, double* of_row) {
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
    if (threadIdx.x != 0) continue;
    of_row[i] = sum;
    const int64_t positive = positives.place(i, n);
    if (positive >= 0) row[positive] = static_cast<T>(positives.value[i]);
  }
}

// of_row [3, m]: the row's parts of loss, sum G and sum G Z.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_kernel(int64_t m, int64_t n, T* logits, double bias, double weight, Positives positives,
                   double* of_row) {
  for (int64_t i = blockIdx.x; i < m; i += gridDim.x) {
    T* row = logits + i * n;
    const T own = positives.column[i] < 0 ? T(0) : static_cast<T>(weight);
    T loss = 0, gradient = 0, gradient_z = 0;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      const T z = row[j], s = z + static_cast<T>(bias);
      const T e = exp(s < 0 ? s : -s);
      loss += (s > 0 ? s : T(0)) + log1p(e);
      const T g = (s < 0 ? e : T(1)) / (e + T(1)) * own;
      gradient += g;
      gradient_z += g * z;
      row[j] = g;
    }
    double sums[3] = {static_cast<double>(own) * block_sum(static_cast<double>(loss)),
                      block_sum(static_cast<double>(gradient)),
                      block_sum(static_cast<double>(gradient_z))};
    if (threadIdx.x != 0) continue;
    const int64_t positive = positives.place(i, n);
    if (positive >= 0) {
      const double z = positives.value[i];
      const RightPair pair = right_pair(weight, z + bias);
      sums[0] += pair.loss;
      sums[1] += pair.gradient;
      sums[2] += pair.gradient * z;
      row[positive] = static_cast<T>(pair.gradient);
    }
    for (int k = 0; k < 3; ++k) of_row[k * m + i] = sums[k];
  }
}

Positives pointers_of(const TilePositives& positives) {
  return {positives.column.as<int64_t>(), positives.first_column, positives.value.as<double>()};
}

}  // namespace

void CudaBackend::contrastive_exclude(TensorView logits, TilePlace place,
                                      const LogitExclusions& exclusions, TensorView positive_logit,
                                      TensorView masked, Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows();
  const Exclusions pointers{exclusions.positive.as<int64_t>() + place.row,
                            exclusions.self.as<int64_t>() + place.row,
                            exclusions.first_range.as<int64_t>() + place.row,
                            exclusions.ranges.as<int64_t>(), exclusions.columns.as<int32_t>()};
  const Scratch scratch(static_cast<size_t>(m) * sizeof(double), logits.device(), stream);
  double* of_row = masked.defined() ? scratch.as<double>() : nullptr;
  dispatch_f32_f64(logits.dtype(), "contrastive_exclude", [&]<class T>() {
    exclude_kernel<T><<<blocks_for_each(m), kThreads, 0, s>>>(
        m, logits.columns(), place.column, pointers, logits.as<T>(),
        pointer_of<double>(positive_logit), of_row);
  });
  check_launch();
  if (of_row) add_sums(of_row, 1, m, masked.as<double>(), logits.device(), stream);
}

void CudaBackend::contrastive_statistics(ConstTensorView logits, TensorView row_maximum,
                                         TensorView row_sum, TensorView column_maximum,
                                         TensorView column_sum, Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows(), n = logits.columns();
  dispatch_f32_f64(logits.dtype(), "contrastive_statistics", [&]<class T>() {
    row_statistics_kernel<T><<<blocks_for_each(m), kThreads, 0, s>>>(
        m, n, logits.as<T>(), row_maximum.as<T>(), row_sum.as<double>());
    check_launch();
    if (!column_maximum.defined()) return;
    column_statistics_kernel<T><<<blocks_for_columns(n), kThreads, 0, s>>>(
        m, n, logits.as<T>(), column_maximum.as<T>(), column_sum.as<double>());
    check_launch();
  });
}

void CudaBackend::contrastive_softmax_gradient(TensorView logits, ConstTensorView row_maximum,
                                               ConstTensorView row_factor,
                                               ConstTensorView column_maximum,
                                               ConstTensorView column_factor,
                                               const TilePositives& positives, TensorView sum,
                                               Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows();
  const Scratch of_row(static_cast<size_t>(m) * sizeof(double), logits.device(), stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_softmax_gradient", [&]<class T>() {
    softmax_gradient_kernel<T><<<blocks_for_each(m), kThreads, 0, s>>>(
        m, logits.columns(), logits.as<T>(), row_maximum.as<T>(), row_factor.as<T>(),
        pointer_of<T>(column_maximum), pointer_of<T>(column_factor), pointers_of(positives),
        of_row.as<double>());
  });
  check_launch();
  add_sums(of_row.as<double>(), 1, m, sum.as<double>(), logits.device(), stream);
}

void CudaBackend::contrastive_sigmoid(TensorView logits, double bias, double weight,
                                      const TilePositives& positives, TensorView sums,
                                      Stream stream) {
  const cudaStream_t s = enter(logits.device(), stream);
  const int64_t m = logits.rows();
  const Scratch of_row(static_cast<size_t>(3 * m) * sizeof(double), logits.device(), stream);
  dispatch_f32_f64(logits.dtype(), "contrastive_sigmoid", [&]<class T>() {
    sigmoid_kernel<T><<<blocks_for_each(m), kThreads, 0, s>>>(m, logits.columns(), logits.as<T>(),
                                                              bias, weight, pointers_of(positives),
                                                              of_row.as<double>());
  });
  check_launch();
  add_sums(of_row.as<double>(), 3, m, sums.as<double>(), logits.device(), stream);
}

}  // namespace amur::cuda
