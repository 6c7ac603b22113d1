// Passes over a tile of logits, each of which reads it once: a block takes a panel of it, and its
// warps kRowsOfWarp rows of the panel at a time. A lane has the same columns in every row, so what
// belongs to columns stays in registers. What is in no sum is left out on the way.
#include "kernels/contrastive.h"

#include "kernels/contrastive_math.h"
#include "kernels/cuda/backend.cuh"

namespace amur::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
// In f64 registers are filled by half as many.
template <class T>
constexpr int kRowsOfWarp = sizeof(T) == sizeof(double) ? 2 : 4;
constexpr int kValues = kPanelColumns / 32;  // of a lane in a row: columns lane, lane + 32, ...
static_assert(kPanelColumns == kThreads && kPanelRows % (kWarps * kRowsOfWarp<float>) == 0);

// Exclusions by plain pointers; those by row begin at the tile's first row.
struct Exclusions {
  const int64_t *positive, *self, *first_range, *ranges;
  const int32_t* columns;
};

// A tile as kernels see it.
template <class T>
struct Panels {
  const T* logits;  // [m, n]
  int64_t m, n;
  int64_t first_column;  // in the whole matrix
  Exclusions out;
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

// What a lane has of one row of its panel.
template <class T>
struct LaneRow {
  T z[kValues];  // kMaskedLogit where the entry is in no sum, or behind the tile
  int positive;  // which of them is the row's right one; -1: none
  T positive_logit;
  int masked;
};

// Where the lane's first value of a row stands in the tile.
__device__ inline int64_t lane_column() {
  return int64_t{blockIdx.x} * kPanelColumns + threadIdx.x % 32;
}

// The loads alone: those of several rows are under way together. Rows behind the end are masked.
template <class T>
__device__ void load(const Panels<T>& tile, int64_t i, bool there, LaneRow<T>& row) {
  const int64_t first = lane_column();
  const T* z = tile.logits + i * tile.n + first;
#pragma unroll
  for (int q = 0; q < kValues; ++q)
    row.z[q] = there && first + 32 * q < tile.n ? z[32 * q] : T(kMaskedLogit);
}

template <class T>
__device__ void exclude(const Panels<T>& tile, int64_t i, LaneRow<T>& row) {
  constexpr T kMasked = kMaskedLogit;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = lane_column(), column = tile.first_column + first;
  const int64_t positive = tile.out.positive[i] - column, self = tile.out.self[i] - column;
  row.positive = -1;
  row.positive_logit = 0;
  row.masked = 0;
#pragma unroll
  for (int q = 0; q < kValues; ++q) {
    if (positive == 32 * q && first + 32 * q < tile.n) {
      row.positive = q;
      row.positive_logit = row.z[q];
      row.z[q] = kMasked;
    }
    if (self == 32 * q) row.z[q] = kMasked;
  }
  for (int64_t r = tile.out.first_range[i]; r < tile.out.first_range[i + 1]; ++r) {
    const int64_t last = tile.out.ranges[2 * r + 1], of_panel = column - lane;
    int64_t k = lower_bound(tile.out.columns, tile.out.ranges[2 * r], last, of_panel);
    for (; k < last && tile.out.columns[k] < of_panel + kPanelColumns; ++k) {
      const int64_t j = tile.out.columns[k] - column;
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        // Out already: the positive, what another range has named, what is behind the tile.
        if (j != 32 * q || row.z[q] == kMasked) continue;
        row.z[q] = kMasked;
        ++row.masked;
      }
    }
  }
}

// f(first row, how many of them there are, rows) for the rows of the warp, kRowsOfWarp at a time;
// those behind the end are masked. Every lane comes to every call.
template <class T, class F>
__device__ void for_each_rows(const Panels<T>& tile, const F& f) {
  const int64_t begin = int64_t{blockIdx.y} * kPanelRows;
  const int64_t end = begin + kPanelRows < tile.m ? begin + kPanelRows : tile.m;
  for (int64_t i = begin + kRowsOfWarp<T> * (threadIdx.x / 32); i < end;
       i += kRowsOfWarp<T> * kWarps) {
    LaneRow<T> rows[kRowsOfWarp<T>];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp<T>; ++r) load(tile, i + r, i + r < end, rows[r]);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp<T>; ++r)
      if (i + r < end) exclude(tile, i + r, rows[r]);
    f(i, end - i < kRowsOfWarp<T> ? static_cast<int>(end - i) : kRowsOfWarp<T>, rows);
  }
}

// Over a warp; every lane gets it.
template <class T>
__device__ T warp_max(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Log-sum-exp of parts of rows and columns, and the rows' masked entries.
template <class T>
struct Partials {
  double *row_sum, *column_sum;  // [panels across, m], [panels down, n]
  T *row_top, *column_top;
  int* masked;  // [panels across, m]
};

template <class T, bool kWithColumns>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(Panels<T> tile, double* positive_logit, Partials<T> partial) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  T tops[kValues], sums[kValues];
#pragma unroll
  for (int q = 0; q < kValues; ++q) {
    tops[q] = kMaskedLogit;
    sums[q] = 0;
  }
  for_each_rows(tile, [&](int64_t i, int count, const LaneRow<T>(&rows)[kRowsOfWarp<T>]) {
#pragma unroll
    for (int r = 0; r < kRowsOfWarp<T>; ++r) {
      if (r >= count) continue;
      const LaneRow<T>& row = rows[r];
      if (row.positive >= 0) positive_logit[i + r] = static_cast<double>(row.positive_logit);
      T top = row.z[0];
#pragma unroll
      for (int q = 1; q < kValues; ++q) top = row.z[q] > top ? row.z[q] : top;
      top = warp_max(top);
      T sum = 0;
#pragma unroll
      for (int q = 0; q < kValues; ++q) sum += exp(row.z[q] - top);
      sum = warp_sum(sum);
      const int masked = warp_sum(row.masked);
      if (lane != 0) continue;
      const int64_t at = blockIdx.x * tile.m + i + r;
      partial.row_top[at] = top;
      partial.row_sum[at] = static_cast<double>(sum);
      partial.masked[at] = masked;
    }
    if constexpr (kWithColumns) {
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        T top = tops[q];
#pragma unroll
        for (int r = 0; r < kRowsOfWarp<T>; ++r) top = rows[r].z[q] > top ? rows[r].z[q] : top;
        T sum = sums[q] * exp(tops[q] - top);
#pragma unroll
        for (int r = 0; r < kRowsOfWarp<T>; ++r) sum += exp(rows[r].z[q] - top);
        tops[q] = top;
        sums[q] = sum;
      }
    }
  });
  if constexpr (kWithColumns) {
    __shared__ T tops_of[kWarps][kPanelColumns];
    __shared__ T sums_of[kWarps][kPanelColumns];
#pragma unroll
    for (int q = 0; q < kValues; ++q) {
      tops_of[warp][32 * q + lane] = tops[q];
      sums_of[warp][32 * q + lane] = sums[q];
    }
    __syncthreads();
    const int64_t column = int64_t{blockIdx.x} * kPanelColumns + threadIdx.x;
    if (column >= tile.n) return;
    T top = tops_of[0][threadIdx.x];
    for (int w = 1; w < kWarps; ++w)
      top = tops_of[w][threadIdx.x] > top ? tops_of[w][threadIdx.x] : top;
    double sum = 0;
    for (int w = 0; w < kWarps; ++w)
      sum += static_cast<double>(sums_of[w][threadIdx.x] * exp(tops_of[w][threadIdx.x] - top));
    partial.column_top[blockIdx.y * tile.n + column] = top;
    partial.column_sum[blockIdx.y * tile.n + column] = sum;
  }
}

// Merges `count` parts, `stride` apart, into a running log-sum-exp, in order.
template <class T>
__device__ void merge(const T* tops, const double* sums, int64_t count, int64_t stride, T* maximum,
                      double* total) {
  T top = *maximum;
  for (int64_t k = 0; k < count; ++k) top = tops[k * stride] > top ? tops[k * stride] : top;
  const auto weight = [&](T part) {
    return exp(static_cast<double>(part) - static_cast<double>(top));
  };
  double sum = *total * weight(*maximum);
  for (int64_t k = 0; k < count; ++k) sum += sums[k * stride] * weight(tops[k * stride]);
  *maximum = top;
  *total = sum;
}

// Rows, then, where there is column_maximum, columns.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(int64_t m, int64_t n, int64_t across, int64_t down, Partials<T> partial,
                 T* row_maximum, double* row_sum, T* column_maximum, double* column_sum,
                 double* masked) {
  const int64_t items = column_maximum ? m + n : m;
  for (int64_t item = first_item(); item < items; item += item_stride()) {
    if (item < m) {
      merge(partial.row_top + item, partial.row_sum + item, across, m, row_maximum + item,
            row_sum + item);
      int64_t count = 0;
      for (int64_t k = 0; k < across; ++k) count += partial.masked[k * m + item];
      masked[item] += static_cast<double>(count);
    } else {
      const int64_t j = item - m;
      merge(partial.column_top + j, partial.column_sum + j, down, n, column_maximum + j,
            column_sum + j);
    }
  }
}

// of_panel[panel] = the panel's part of sum G Z. The column arrays may be null; `gradient` may be
// the logits.
template <class T, class G>
__global__ void __launch_bounds__(kThreads)
    softmax_gradient_kernel(Panels<T> tile, const T* row_maximum, const T* row_factor,
                            const T* column_maximum, const T* column_factor,
                            const double* positive_gradient, G* gradient, double* of_panel) {
  const int64_t first = lane_column();
  T tops[kValues], factors[kValues];
#pragma unroll
  for (int q = 0; q < kValues; ++q) {
    const bool there = column_maximum && first + 32 * q < tile.n;
    tops[q] = there ? column_maximum[first + 32 * q] : T(0);
    factors[q] = there ? column_factor[first + 32 * q] : T(0);
  }
  double sum = 0;
  for_each_rows(tile, [&](int64_t i, int count, const LaneRow<T>(&rows)[kRowsOfWarp<T>]) {
#pragma unroll
    for (int r = 0; r < kRowsOfWarp<T>; ++r) {
      if (r >= count) continue;
      const T top = row_maximum[i + r], factor = row_factor[i + r];
      G* to = gradient + (i + r) * tile.n + first;
      T part = 0;
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        const T z = rows[r].z[q];
        T g = exp(z - top) * factor;
        if (column_maximum) g += exp(z - tops[q]) * factors[q];
        part += g * z;
        if (q == rows[r].positive) g = static_cast<T>(positive_gradient[i + r]);
        if (first + 32 * q < tile.n) to[32 * q] = G(g);
      }
      sum += static_cast<double>(part);
    }
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) of_panel[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sum;
}

// of_panel [4, panels]: the panels' parts of loss, sum G, sum G Z and masked entries.
template <class T, class G>
__global__ void __launch_bounds__(kThreads)
    sigmoid_kernel(Panels<T> tile, double bias, double weight, G* gradient, double* of_panel) {
  const int64_t first = lane_column();
  double sums[4] = {};
  for_each_rows(tile, [&](int64_t i, int count, const LaneRow<T>(&rows)[kRowsOfWarp<T>]) {
#pragma unroll
    for (int r = 0; r < kRowsOfWarp<T>; ++r) {
      if (r >= count) continue;
      const LaneRow<T>& row = rows[r];
      const T own = tile.out.positive[i + r] < 0 ? T(0) : static_cast<T>(weight);
      G* to = gradient + (i + r) * tile.n + first;
      T loss = 0, total = 0, total_z = 0;
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        const T z = row.z[q], s = z + static_cast<T>(bias);
        const T e = exp(s < 0 ? s : -s);
        loss += (s > 0 ? s : T(0)) + log1p(e);
        T g = (s < 0 ? e : T(1)) / (e + T(1)) * own;
        total += g;
        total_z += g * z;
        if (q == row.positive) {
          const double right = static_cast<double>(row.positive_logit);
          const RightPair pair = right_pair(weight, right + bias);
          sums[0] += pair.loss;
          sums[1] += pair.gradient;
          sums[2] += pair.gradient * right;
          g = static_cast<T>(pair.gradient);
        }
        if (first + 32 * q < tile.n) to[32 * q] = G(g);
      }
      sums[0] += static_cast<double>(own) * static_cast<double>(loss);
      sums[1] += static_cast<double>(total);
      sums[2] += static_cast<double>(total_z);
      sums[3] += row.masked;
    }
  });
  const int64_t panels = int64_t{gridDim.x} * gridDim.y;
  for (int k = 0; k < 4; ++k) {
    const double sum = block_sum(sums[k]);
    if (threadIdx.x == 0) of_panel[k * panels + int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sum;
  }
}

template <class T>
Panels<T> panels_of(const LogitTile& tile) {
  const LogitExclusions& e = tile.exclusions;
  const int64_t row = tile.place.row;
  return {tile.logits.as<T>(),
          tile.logits.rows(),
          tile.logits.columns(),
          tile.place.column,
          {e.positive.as<int64_t>() + row, e.self.as<int64_t>() + row,
           e.first_range.as<int64_t>() + row, e.ranges.as<int64_t>(), e.columns.as<int32_t>()}};
}
dim3 grid_of(const LogitTile& tile) {
  return {panels_across(tile.logits.columns()), panels_down(tile.logits.rows())};
}

}  // namespace

void CudaBackend::contrastive_statistics(const LogitTile& tile, TensorView row_maximum,
                                         TensorView row_sum, TensorView column_maximum,
                                         TensorView column_sum, TensorView positive_logit,
                                         TensorView masked, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const int64_t m = tile.logits.rows(), n = tile.logits.columns();
  const dim3 grid = grid_of(tile);
  const auto rows = static_cast<size_t>(grid.x * m);
  const size_t columns = column_maximum.defined() ? static_cast<size_t>(grid.y * n) : 0;
  dispatch_f32_f64(tile.logits.dtype(), "contrastive_statistics", [&]<class T>() {
    const Scratch scratch((rows + columns) * (sizeof(double) + sizeof(T)) + rows * sizeof(int),
                          tile.logits.device(), stream);
    Partials<T> partial{};
    partial.row_sum = scratch.as<double>();
    partial.column_sum = partial.row_sum + rows;
    partial.row_top = reinterpret_cast<T*>(partial.column_sum + columns);
    partial.column_top = partial.row_top + rows;
    partial.masked = reinterpret_cast<int*>(partial.column_top + columns);
    if (columns)
      statistics_kernel<T, true>
          <<<grid, kThreads, 0, s>>>(panels_of<T>(tile), positive_logit.as<double>(), partial);
    else
      statistics_kernel<T, false>
          <<<grid, kThreads, 0, s>>>(panels_of<T>(tile), positive_logit.as<double>(), partial);
    check_launch();
    merge_kernel<T><<<blocks_for(m + n), kThreads, 0, s>>>(
        m, n, grid.x, grid.y, partial, row_maximum.as<T>(), row_sum.as<double>(),
        pointer_of<T>(column_maximum), pointer_of<double>(column_sum), masked.as<double>());
    check_launch();
  });
}

void CudaBackend::contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                               ConstTensorView row_factor,
                                               ConstTensorView column_maximum,
                                               ConstTensorView column_factor,
                                               ConstTensorView positive_gradient, TensorView sum,
                                               TensorView gradient, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const dim3 grid = grid_of(tile);
  const int64_t panels = int64_t{grid.x} * grid.y;
  const Scratch of_panel(static_cast<size_t>(panels) * sizeof(double), gradient.device(), stream);
  dispatch_gradient(tile, gradient.dtype(), "contrastive_softmax_gradient",
                    [&]<class T, class G>() {
                      softmax_gradient_kernel<T, G><<<grid, kThreads, 0, s>>>(
                          panels_of<T>(tile), row_maximum.as<T>(), row_factor.as<T>(),
                          pointer_of<T>(column_maximum), pointer_of<T>(column_factor),
                          positive_gradient.as<double>(), gradient.as<G>(), of_panel.as<double>());
                    });
  check_launch();
  add_sums(of_panel.as<double>(), 1, panels, sum.as<double>(), gradient.device(), stream);
}

void CudaBackend::contrastive_sigmoid(const LogitTile& tile, double bias, double weight,
                                      TensorView sums, TensorView gradient, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const dim3 grid = grid_of(tile);
  const int64_t panels = int64_t{grid.x} * grid.y;
  const Scratch of_panel(static_cast<size_t>(4 * panels) * sizeof(double), gradient.device(),
                         stream);
  dispatch_gradient(tile, gradient.dtype(), "contrastive_sigmoid", [&]<class T, class G>() {
    sigmoid_kernel<T, G><<<grid, kThreads, 0, s>>>(panels_of<T>(tile), bias, weight,
                                                   gradient.as<G>(), of_panel.as<double>());
  });
  check_launch();
  add_sums(of_panel.as<double>(), 4, panels, sums.as<double>(), gradient.device(), stream);
}

}  // namespace amur::cuda
