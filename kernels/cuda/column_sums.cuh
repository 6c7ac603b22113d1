// Sums down the columns of a matrix, in an order that depends on its shape alone: blocks of rows
// first, then the blocks one after another.
#pragma once

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {

// partial[block, k, column] = sum over the rows of the block of terms(row, column)[k], k < count
template <int count, class P, class Terms>
__global__ void __launch_bounds__(kThreads)
    column_partials_kernel(int64_t rows, int64_t width, int64_t rows_of_block, Terms terms,
                           P* partial) {
  __shared__ P lines[count][kLinesOfTile][kColumnsOfTile];
  const int lane = static_cast<int>(threadIdx.x) % kColumnsOfTile;
  const int line = static_cast<int>(threadIdx.x) / kColumnsOfTile;
  const int64_t column = int64_t{blockIdx.x} * kColumnsOfTile + lane;
  const int64_t first = blockIdx.y * rows_of_block;
  const int64_t end = first + rows_of_block < rows ? first + rows_of_block : rows;
  P sums[count] = {};
  if (column < width) {
    for (int64_t row = first + line; row < end; row += kLinesOfTile) {
      P values[count];
      terms(row, column, values);
      for (int k = 0; k < count; ++k) sums[k] += values[k];
    }
  }
  for (int k = 0; k < count; ++k) lines[k][line][lane] = sums[k];
  __syncthreads();
  if (line != 0 || column >= width) return;
  for (int k = 0; k < count; ++k) {
    P sum = 0;
    for (int l = 0; l < kLinesOfTile; ++l) sum += lines[k][l][lane];
    partial[(blockIdx.y * count + k) * width + column] = sum;
  }
}

// sinks[k][column] += scale * sum over the blocks, where the sink is not null
template <int count, class P>
struct ColumnSinks {
  P* sink[count];
};
template <int count, class P>
__global__ void __launch_bounds__(kThreads)
    column_finish_kernel(int64_t blocks, int64_t width, P scale, const P* partial,
                         ColumnSinks<count, P> sinks) {
  for (int64_t column = first_item(); column < width; column += item_stride()) {
    for (int k = 0; k < count; ++k) {
      if (!sinks.sink[k]) continue;
      P sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += partial[(b * count + k) * width + column];
      sinks.sink[k][column] += scale * sum;
    }
  }
}

template <int count, class P, class Terms>
void add_column_sums(int64_t rows, int64_t width, const Terms& terms, P scale,
                     const ColumnSinks<count, P>& sinks, Device device, Stream stream) {
  const cudaStream_t s = enter(device, stream);
  const int64_t blocks = row_blocks(rows);
  const Scratch scratch(static_cast<size_t>(blocks * count * width) * sizeof(P), device, stream);
  const dim3 grid(blocks_for_columns(width), row_blocks(rows));
  column_partials_kernel<count, P>
      <<<grid, kThreads, 0, s>>>(rows, width, rows_of_block(rows), terms, scratch.as<P>());
  check_launch();
  column_finish_kernel<count, P>
      <<<blocks_for(width), kThreads, 0, s>>>(blocks, width, scale, scratch.as<const P>(), sinks);
  check_launch();
}

}  // namespace amur::cuda
