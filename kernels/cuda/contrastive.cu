// Passes over a tile of logits, each of which reads it once: a block takes a panel of it, its warps
// some rows each, and a lane has the same columns in every row, so what belongs to columns stays in
// registers. What is in no sum is set to kMaskedLogit in memory before the warp reads its rows:
// that concerns few rows of few panels, and the loops over entries know nothing of it.
#include "kernels/contrastive.h"

#include "kernels/contrastive_math.h"
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace amur::cuda {
namespace {

constexpr int kWarps = kThreads / kLanes;
constexpr int kValues = kPanelColumns / kLanes;   // of a lane in a row
constexpr int kRowsOfWarp = kPanelRows / kWarps;  // side by side
// Rows of a warp whose loads are under way together. In f64 registers are filled by half as many.
template <class T>
constexpr int kAtOnce = sizeof(T) == sizeof(double) ? 2 : 4;
static_assert(kPanelColumns == kThreads && kPanelRows <= kThreads && kRowsOfWarp <= kLanes &&
              kRowsOfWarp % kAtOnce<float> == 0);

// Blocks of a multiprocessor.
template <class T>
constexpr int kBlocks = sizeof(T) == sizeof(double) ? 1 : 2;

// Exclusions by plain pointers; those by row begin at the tile's first row.
struct Exclusions {
  const int64_t *positive, *self, *first_range, *ranges;
  const int32_t* columns;
};

// A tile as kernels see it.
template <class T>
struct Panels {
  T* logits;  // [m, n]
  int64_t m, n;
  int64_t first_column;  // in the whole matrix
  Exclusions out;
};

// Where the block's panel and the warp's rows begin in the tile.
__device__ inline int64_t panel_column() {
  return int64_t{blockIdx.x} * kPanelColumns;
}
__device__ inline int64_t panel_row() {
  return int64_t{blockIdx.y} * kPanelRows;
}
__device__ inline int64_t row_of_warp() {
  return panel_row() + threadIdx.x / kLanes * kRowsOfWarp;
}
// How many columns the panel has, at most kPanelColumns.
template <class T>
__device__ int panel_width(const Panels<T>& tile) {
  const int64_t left = tile.n - panel_column();
  return left < kPanelColumns ? static_cast<int>(left) : static_cast<int>(kPanelColumns);
}
// The panel's column of a lane's value q: packs of neighbours, lane by lane.
template <int pack>
__device__ int column_of(int q) {
  return q / pack * (pack * kLanes) + lane_of_warp() * pack + q % pack;
}

// exp(Z - top) for many Z: exp_from(Z, shift_of(top)), and their sum times remainder(top), once.
// In f32 that is one multiply-add, rounded once as a logit of that size is, and the instruction for
// 2^x. Next to a shift that is not of nothing, what is masked is exactly 0.
constexpr float kLog2e = 1.442695041f;
__device__ inline float shift_of(float top) {
  return fmax(top * kLog2e, kMaskedLogit);
}
__device__ inline float exp_from(float z, float shift) {
  return exp2_approximate(fma(z, kLog2e, -shift));
}
// By what the shift was rounded: 2^-x, for small x.
__device__ inline float remainder(float top) {
  return fma(fma(top, kLog2e, -shift_of(top)), -0.6931471806f, 1.0f);
}
// From one shift to another; 1 where they are the same.
__device__ inline float rescale(float from, float to) {
  return exp2_approximate(from - to);
}
// exp(a - b) of two maxima; 1 where they are the same.
__device__ inline float exp_between(float a, float b) {
  return exp2_approximate((a - b) * kLog2e);
}
__device__ inline double shift_of(double top) {
  return top;
}
__device__ inline double exp_from(double z, double shift) {
  return exp(z - shift);
}
__device__ inline double remainder(double) {
  return 1;
}
__device__ inline double rescale(double from, double to) {
  return exp(from - to);
}
__device__ inline double exp_between(double a, double b) {
  return exp(a - b);
}

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

// What a lane has found in the row of the warp that is its own.
template <class T>
struct LeftOut {
  int64_t row = 0;    // in the tile
  int positive = -1;  // the panel's column of the right one; -1: not here
  T positive_logit = 0;
  int masked = 0;
};

// Sets what is in no sum, one row a lane. All of the warp see it afterwards.
template <class T>
__device__ LeftOut<T> leave_out(const Panels<T>& tile) {
  constexpr T kMasked = kMaskedLogit;
  LeftOut<T> own;
  own.row = row_of_warp() + lane_of_warp();
  if (lane_of_warp() < kRowsOfWarp && own.row < tile.m) {
    const int64_t i = own.row, column = tile.first_column + panel_column();
    const int width = panel_width(tile);
    const int64_t positive = tile.out.positive[i] - column, self = tile.out.self[i] - column;
    const int64_t ranges = tile.out.first_range[i + 1];
    T* z = tile.logits + i * tile.n + panel_column();
    if (positive >= 0 && positive < width) {
      own.positive = static_cast<int>(positive);
      own.positive_logit = z[positive];
      z[positive] = kMasked;
    }
    if (self >= 0 && self < width) z[self] = kMasked;
    for (int64_t r = tile.out.first_range[i]; r < ranges; ++r) {
      const int64_t last = tile.out.ranges[2 * r + 1];
      int64_t k = lower_bound(tile.out.columns, tile.out.ranges[2 * r], last, column);
      for (; k < last && tile.out.columns[k] < column + width; ++k) {
        T& entry = z[tile.out.columns[k] - column];
        // Out already: the positive, what another range has named.
        if (entry == kMasked) continue;
        entry = kMasked;
        ++own.masked;
      }
    }
  }
  __syncwarp();
  return own;
}

// f(first row, how many there are, values) for the rows of the warp, kAtOnce at a time; what is
// behind the tile is masked. Every lane comes to every call.
template <int pack, class T, class F>
__device__ void for_each_rows(const Panels<T>& tile, const F& f) {
  const int width = panel_width(tile);
  const int64_t begin = row_of_warp(), left = tile.m - begin;
  const int rows = left < kRowsOfWarp ? static_cast<int>(left) : kRowsOfWarp;
  const T* from = tile.logits + begin * tile.n + panel_column() + column_of<pack>(0);
#pragma unroll 1
  for (int i = 0; i < rows; i += kAtOnce<T>, from += kAtOnce<T> * tile.n) {
    const int count = rows - i < kAtOnce<T> ? rows - i : kAtOnce<T>;
    T z[kAtOnce<T>][kValues];
    const auto load = [&](const auto& there) {
#pragma unroll
      for (int r = 0; r < kAtOnce<T>; ++r) {
#pragma unroll
        for (int q = 0; q < kValues; q += pack) {
          Pack<T, pack> values;
          if (there(r, q)) {
            values = load_pack<pack>(from + r * tile.n + q * kLanes);
          } else {
#pragma unroll
            for (int k = 0; k < pack; ++k) values.v[k] = kMaskedLogit;
          }
#pragma unroll
          for (int k = 0; k < pack; ++k) z[r][q + k] = values.v[k];
        }
      }
    };
    if (width == kPanelColumns && count == kAtOnce<T>)
      load([](int, int) { return true; });
    else
      load([&](int r, int q) { return r < count && column_of<pack>(q) < width; });
    f(begin + i, count, z);
  }
}

// Over a warp; every lane gets it.
template <class T>
__device__ T warp_max(T value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value = fmax(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// LogSums by plain pointers; one number of a part after another.
template <class T>
struct Parts {
  T* maximum;
  double* sum;
  int64_t stride;  // from part to part
};

// Adds `sum` exp(Z - top) to a pair.
template <class T>
__device__ void add(const Parts<T>& parts, int64_t at, T top, double sum) {
  const double before = parts.sum[at];
  if (before != 0) {
    const T old = parts.maximum[at], both = fmax(old, top);
    sum = before * static_cast<double>(exp_between(old, both)) +
          sum * static_cast<double>(exp_between(top, both));
    top = both;
  }
  parts.maximum[at] = top;
  parts.sum[at] = sum;
}

// Rows and columns begin at the tile's first; `masked` are the parts of the whole.
template <class T, int pack, bool kWithColumns>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    statistics_kernel(Panels<T> tile, double* positive_logit, Parts<T> rows, Parts<T> columns,
                      double* masked) {
  __shared__ T row_tops[kPanelRows];
  __shared__ T row_sums[kPanelRows];
  const LeftOut<T> own = leave_out(tile);
  if (own.positive >= 0) positive_logit[own.row] = static_cast<double>(own.positive_logit);
  T tops[kValues], sums[kValues];
#pragma unroll
  for (int q = 0; q < kValues; ++q) {
    tops[q] = kMaskedLogit;
    sums[q] = 0;
  }
  for_each_rows<pack>(tile, [&](int64_t i, int, const T(&z)[kAtOnce<T>][kValues]) {
#pragma unroll
    for (int r = 0; r < kAtOnce<T>; ++r) {
      T top = z[r][0];
#pragma unroll
      for (int q = 1; q < kValues; ++q) top = fmax(top, z[r][q]);
      top = warp_max(top);
      const T shift = shift_of(top);
      T sum = 0;
#pragma unroll
      for (int q = 0; q < kValues; ++q) sum += exp_from(z[r][q], shift);
      sum = warp_sum(sum) * remainder(top);
      if (lane_of_warp() != 0) continue;
      row_tops[i - panel_row() + r] = top;
      row_sums[i - panel_row() + r] = sum;
    }
    if constexpr (kWithColumns) {
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        T top = tops[q];
#pragma unroll
        for (int r = 0; r < kAtOnce<T>; ++r) top = fmax(top, z[r][q]);
        const T shift = shift_of(top);
        T sum = sums[q] * rescale(shift_of(tops[q]), shift);
#pragma unroll
        for (int r = 0; r < kAtOnce<T>; ++r) sum += exp_from(z[r][q], shift);
        tops[q] = top;
        sums[q] = sum;
      }
    }
  });
  const int count = block_sum(own.masked);  // and the block's rows are there
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) masked[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] += count;
  if (thread < kPanelRows && panel_row() + thread < tile.m)
    add(rows, blockIdx.x * rows.stride + panel_row() + thread, row_tops[thread],
        static_cast<double>(row_sums[thread]));
  if constexpr (kWithColumns) {
    __shared__ T tops_of[kWarps][kPanelColumns];
    __shared__ T sums_of[kWarps][kPanelColumns];
#pragma unroll
    for (int q = 0; q < kValues; ++q) {
      tops_of[thread / kLanes][column_of<pack>(q)] = tops[q];
      sums_of[thread / kLanes][column_of<pack>(q)] = sums[q] * remainder(tops[q]);
    }
    __syncthreads();
    if (panel_column() + thread >= tile.n) return;
    T top = tops_of[0][thread];
    for (int w = 1; w < kWarps; ++w) top = fmax(top, tops_of[w][thread]);
    double sum = 0;
    for (int w = 0; w < kWarps; ++w)
      sum += static_cast<double>(sums_of[w][thread] * exp_between(tops_of[w][thread], top));
    add(columns, blockIdx.y * columns.stride + panel_column() + thread, top, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_statistics_kernel(int64_t n, int64_t count, Parts<T> parts) {
  for (int64_t i = first_item(); i < n; i += item_stride()) {
    T top = kMaskedLogit;
    for (int64_t k = 0; k < count; ++k)
      if (parts.sum[k * n + i] != 0) top = fmax(top, parts.maximum[k * n + i]);
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const double part = parts.sum[k * n + i];
      if (part != 0) sum += part * static_cast<double>(exp_between(parts.maximum[k * n + i], top));
    }
    parts.maximum[i] = top;
    parts.sum[i] = sum;
  }
}

// A lane's gradients of a row, rounded to their type, to where the panel has the row.
template <int pack, class T, class G>
__device__ void store_row(const T (&g)[kValues], int width, G* to) {
#pragma unroll
  for (int q = 0; q < kValues; q += pack) {
    const int column = column_of<pack>(q);
    if (column >= width) continue;
    if constexpr (std::is_same_v<G, bf16> && pack == 4) {  // bf16 would be stored one by one
      const uint64_t high = pack_bf16(g[q + 2], g[q + 3]);
      *reinterpret_cast<uint64_t*>(to + column) = high << 32 | pack_bf16(g[q], g[q + 1]);
    } else {
      Pack<G, pack> values;
#pragma unroll
      for (int k = 0; k < pack; ++k) values.v[k] = G(g[q + k]);
      store_pack<pack>(to + column, values);
    }
  }
}

// Rows and columns begin at the tile's first; `gradient` may be the logits. `total` are the parts
// of the whole.
template <class T, class G, int pack, bool kWithColumns>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    softmax_gradient_kernel(Panels<T> tile, const T* row_maximum, const T* row_factor,
                            const T* column_maximum, const T* column_factor,
                            const double* positive_gradient, G* gradient, double* total) {
  const LeftOut<T> own = leave_out(tile);
  const int width = panel_width(tile);
  T shifts[kValues], factors[kValues];
#pragma unroll
  for (int q = 0; q < kValues; ++q) {
    const int column = column_of<pack>(q);
    const bool there = kWithColumns && column < width;
    const T top = there ? column_maximum[panel_column() + column] : T(0);
    shifts[q] = shift_of(top);
    factors[q] = there ? column_factor[panel_column() + column] * remainder(top) : T(0);
  }
  double sum = 0;
  for_each_rows<pack>(tile, [&](int64_t i, int count, const T(&z)[kAtOnce<T>][kValues]) {
    T part = 0;
#pragma unroll
    for (int r = 0; r < kAtOnce<T>; ++r) {
      if (r >= count) continue;
      const T top = row_maximum[i + r], shift = shift_of(top);
      const T factor = row_factor[i + r] * remainder(top);
      G* to = gradient + (i + r) * tile.n + panel_column();
      T g[kValues];
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        g[q] = exp_from(z[r][q], shift) * factor;
        if constexpr (kWithColumns) g[q] = fma(exp_from(z[r][q], shifts[q]), factors[q], g[q]);
        part = fma(g[q], z[r][q], part);
      }
      store_row<pack>(g, width, to);
    }
    sum += static_cast<double>(part);
  });
  __syncwarp();
  if (own.positive >= 0)
    gradient[own.row * tile.n + panel_column() + own.positive] =
        G(static_cast<T>(positive_gradient[own.row]));
  sum = block_sum(sum);
  if (threadIdx.x == 0) total[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] += sum;
}

// total [4, parts of the whole].
template <class T, class G, int pack>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    sigmoid_kernel(Panels<T> tile, double bias, double weight, G* gradient, double* total,
                   int64_t parts) {
  const LeftOut<T> own = leave_out(tile);
  const int width = panel_width(tile);
  double sums[4] = {0, 0, 0, static_cast<double>(own.masked)};
  for_each_rows<pack>(tile, [&](int64_t i, int count, const T(&z)[kAtOnce<T>][kValues]) {
#pragma unroll
    for (int r = 0; r < kAtOnce<T>; ++r) {
      if (r >= count) continue;
      const T factor = tile.out.positive[i + r] < 0 ? T(0) : static_cast<T>(weight);
      G* to = gradient + (i + r) * tile.n + panel_column();
      T loss = 0, all = 0, all_z = 0, g[kValues];
#pragma unroll
      for (int q = 0; q < kValues; ++q) {
        const T s = z[r][q] + static_cast<T>(bias);
        const T e = exp(s < 0 ? s : -s);
        loss += (s > 0 ? s : T(0)) + log1p(e);
        g[q] = (s < 0 ? e : T(1)) / (e + T(1)) * factor;
        all += g[q];
        all_z += g[q] * z[r][q];
      }
      store_row<pack>(g, width, to);
      sums[0] += static_cast<double>(factor) * static_cast<double>(loss);
      sums[1] += static_cast<double>(all);
      sums[2] += static_cast<double>(all_z);
    }
  });
  __syncwarp();
  if (own.positive >= 0) {
    const double z = static_cast<double>(own.positive_logit);
    const RightPair pair = right_pair(weight, z + bias);
    sums[0] += pair.loss;
    sums[1] += pair.gradient;
    sums[2] += pair.gradient * z;
    gradient[own.row * tile.n + panel_column() + own.positive] = G(static_cast<T>(pair.gradient));
  }
  for (int k = 0; k < 4; ++k) {
    const double sum = block_sum(sums[k]);
    if (threadIdx.x == 0) total[k * parts + int64_t{blockIdx.y} * gridDim.x + blockIdx.x] += sum;
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads) softmax_step_kernel(int64_t n, F f) {
  for (int64_t i = first_item(); i < n; i += item_stride()) f(i);
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
template <class T>
Parts<T> parts_of(const LogSums& sums, int64_t first) {
  if (!sums.sum.defined()) return {};
  return {sums.maximum.as<T>() + first, sums.sum.as<double>() + first, sums.sum.columns()};
}
// A vector from its element `first` on, or null.
template <class T>
const T* from(ConstTensorView vector, int64_t first) {
  return vector.defined() ? vector.as<T>() + first : nullptr;
}

}  // namespace

void CudaBackend::contrastive_statistics(const LogitTile& tile, const LogSums& rows,
                                         const LogSums& columns, TensorView positive_logit,
                                         TensorView masked, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const TilePlace at = tile.place;
  dispatch_f32_f64(tile.logits.dtype(), "contrastive_statistics", [&]<class T>() {
    const auto launch = [&]<int pack>() {
      const auto kernel = columns.sum.defined() ? statistics_kernel<T, pack, true>
                                                : statistics_kernel<T, pack, false>;
      kernel<<<grid_of(tile), kThreads, 0, s>>>(
          panels_of<T>(tile), positive_logit.as<double>() + at.row, parts_of<T>(rows, at.row),
          parts_of<T>(columns, at.column), masked.as<double>());
    };
    with_packs<T>(tile.logits.columns(), launch, tile.logits.as<T>());
  });
  check_launch();
}

void CudaBackend::merge_log_sums(const LogSums& sums, Stream stream) {
  const cudaStream_t s = enter(sums.sum.device(), stream);
  const int64_t n = sums.sum.columns();
  dispatch_f32_f64(sums.maximum.dtype(), "merge_log_sums", [&]<class T>() {
    merge_statistics_kernel<T>
        <<<blocks_for(n), kThreads, 0, s>>>(n, sums.sum.rows(), parts_of<T>(sums, 0));
  });
  check_launch();
}

void CudaBackend::contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                               ConstTensorView row_factor,
                                               ConstTensorView column_maximum,
                                               ConstTensorView column_factor,
                                               ConstTensorView positive_gradient, TensorView sum,
                                               TensorView gradient, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const TilePlace at = tile.place;
  const auto run = [&]<class T, class G>() {
    const auto launch = [&]<int pack>() {
      const auto kernel = column_maximum.defined() ? softmax_gradient_kernel<T, G, pack, true>
                                                   : softmax_gradient_kernel<T, G, pack, false>;
      kernel<<<grid_of(tile), kThreads, 0, s>>>(
          panels_of<T>(tile), from<T>(row_maximum, at.row), from<T>(row_factor, at.row),
          from<T>(column_maximum, at.column), from<T>(column_factor, at.column),
          from<double>(positive_gradient, at.row), gradient.as<G>(), sum.as<double>());
    };
    with_packs<T>(tile.logits.columns(), launch, tile.logits.as<T>(), gradient.as<G>());
  };
  dispatch_gradient(tile, gradient.dtype(), "contrastive_softmax_gradient", run);
  check_launch();
}

void CudaBackend::contrastive_sigmoid(const LogitTile& tile, double bias, double weight,
                                      TensorView sums, TensorView gradient, Stream stream) {
  const cudaStream_t s = enter(tile.logits.device(), stream);
  const auto run = [&]<class T, class G>() {
    const auto launch = [&]<int pack>() {
      sigmoid_kernel<T, G, pack><<<grid_of(tile), kThreads, 0, s>>>(
          panels_of<T>(tile), bias, weight, gradient.as<G>(), sums.as<double>(), sums.columns());
    };
    with_packs<T>(tile.logits.columns(), launch, tile.logits.as<T>(), gradient.as<G>());
  };
  dispatch_gradient(tile, gradient.dtype(), "contrastive_sigmoid", run);
  check_launch();
}

std::vector<double> CudaBackend::sums_of_parts(ConstTensorView parts, Stream stream) {
  std::vector<double> sums(static_cast<size_t>(parts.rows()));
  sums_to_host(parts.as<double>(), parts.rows(), parts.columns(), sums.data(), parts.device(),
               stream);
  return sums;
}

void CudaBackend::softmax_step(SoftmaxStep step, const SoftmaxEnds& ends, Stream stream) {
  const cudaStream_t s = enter(ends.positive.device(), stream);
  dispatch_f32_f64(ends.row_maximum.dtype(), "softmax_step", [&]<class T>() {
    with_step<T>(step, ends, [&](const auto& items) {
      const int64_t n = items.items();
      if (n > 0) softmax_step_kernel<<<blocks_for(n), kThreads, 0, s>>>(n, items);
    });
  });
  check_launch();
}

}  // namespace amur::cuda
