// Sums down the columns of a matrix, in an order that depends on its shape alone: a warp's rows one
// after another, then the warps of a block, then the blocks.
#pragma once

#include "kernels/cuda/packs.cuh"

namespace amur::cuda {

// A warp goes down the rows of its block, a lane has `pack` neighbouring columns:
//   partial[block, k, column] = sum over the block's rows of terms(row, first column)[k][..]
// where terms(row, first column, P (&values)[count][pack]) sets them; Terms::kUnroll rows at a
// time.
template <int pack, int count, class P, class Terms>
__global__ void __launch_bounds__(kThreads)
    column_partials_kernel(int64_t rows, int64_t width, int64_t rows_of_block, Terms terms,
                           P* partial) {
  constexpr int kPanel = kLanes * pack, kLine = kLanes + 1;
  __shared__ P of_warp[kRowsOfBlock][count][pack * kLine];
  const int lane = lane_of_warp(), warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t panel = int64_t{blockIdx.x} * kPanel, column = panel + lane * pack;
  const int64_t first = blockIdx.y * rows_of_block;
  const int64_t end = first + rows_of_block < rows ? first + rows_of_block : rows;
  P sums[count][pack] = {};
  if (column < width) {
#pragma unroll Terms::kUnroll
    for (int64_t row = first + warp; row < end; row += kRowsOfBlock) {
      P values[count][pack];
      terms(row, column, values);
#pragma unroll
      for (int k = 0; k < count; ++k)
#pragma unroll
        for (int e = 0; e < pack; ++e) sums[k][e] += values[k][e];
    }
  }
#pragma unroll
  for (int k = 0; k < count; ++k)
#pragma unroll
    for (int e = 0; e < pack; ++e) of_warp[warp][k][e * kLine + lane] = sums[k][e];
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kPanel && panel + at < width; at += kThreads) {
    for (int k = 0; k < count; ++k) {
      P sum = 0;
      for (int w = 0; w < kRowsOfBlock; ++w) sum += of_warp[w][k][at % pack * kLine + at / pack];
      partial[(blockIdx.y * count + k) * width + panel + at] = sum;
    }
  }
}

// Where sums go: sinks[k][column] += scales[k] * sum, where the sink is not null.
template <int count, class P>
struct ColumnSinks {
  P* sink[count];
  P scale[count];
};

// The sums over the blocks of partial [blocks, count, width], each blockIdx.y into its sink.
// A block has 32 columns and goes over eighths of the blocks side by side.
template <int count, class P>
__global__ void __launch_bounds__(kThreads)
    column_finish_kernel(int64_t blocks, int64_t width, const P* partial,
                         const __grid_constant__ ColumnSinks<count, P> sinks) {
  __shared__ P lines[kLinesOfTile][kColumnsOfTile];
  const int lane = static_cast<int>(threadIdx.x) % kColumnsOfTile;
  const int line = static_cast<int>(threadIdx.x) / kColumnsOfTile;
  const int64_t column = int64_t{blockIdx.x} * kColumnsOfTile + lane;
  P* const sink = sinks.sink[blockIdx.y];
  if (!sink) return;
  const int64_t of_line = (blocks + kLinesOfTile - 1) / kLinesOfTile, first = line * of_line;
  const int64_t end = first + of_line < blocks ? first + of_line : blocks;
  P sum = 0;
  if (column < width) {
    const P* at = partial + blockIdx.y * width + column;
#pragma unroll 8
    for (int64_t b = first; b < end; ++b) sum += at[b * count * width];
  }
  lines[line][lane] = sum;
  __syncthreads();
  if (line != 0 || column >= width) return;
  sum = 0;
  for (int l = 0; l < kLinesOfTile; ++l) sum += lines[l][lane];
  sink[column] += sinks.scale[blockIdx.y] * sum;
}

template <int count, class P>
void finish_column_sums(int64_t blocks, int64_t width, const P* partial,
                        const ColumnSinks<count, P>& sinks, cudaStream_t stream) {
  const dim3 grid(blocks_for_columns(width), count);
  column_finish_kernel<count, P><<<grid, kThreads, 0, stream>>>(blocks, width, partial, sinks);
  check_launch();
}

// sinks[k][column] += scale[k] * sum over the rows of terms(row, column)[k]. With `parts` sinks
// for a count of 1, they are of equal parts of the columns, side by side.
template <int pack, int count, class P, class Terms, int parts>
void add_column_sums(int64_t rows, int64_t width, const Terms& terms,
                     const ColumnSinks<parts, P>& sinks, Device device, Stream stream) {
  static_assert(parts == count || count == 1);
  const cudaStream_t s = enter(device, stream);
  const int64_t blocks = row_blocks(rows);
  const Scratch scratch(static_cast<size_t>(blocks * count * width) * sizeof(P), device, stream);
  const dim3 grid(panels_of_columns(width, pack), row_blocks(rows));
  column_partials_kernel<pack, count, P>
      <<<grid, kThreads, 0, s>>>(rows, width, rows_of_block(rows), terms, scratch.as<P>());
  check_launch();
  finish_column_sums<parts, P>(blocks, width * count / parts, scratch.as<const P>(), sinks, s);
}

}  // namespace amur::cuda
