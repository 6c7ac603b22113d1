// What the kernels of attention_bf16.cu are made of: rows on their way into shared memory and back,
// products of 16 rows of a warp with a tile, what a warp works on, dropout.
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace amur::cuda {

using Block = float[4];  // of sums, [16, 8]: tensor_core.cuh says who holds what

struct Lane {
  int index = static_cast<int>(threadIdx.x) % 32;
  int group = index / 4, pair = index % 4;

  // Place of value r of block b.
  __device__ int row(int r) const { return group + r / 2 * 8; }
  __device__ int column(int b, int r) const { return b * 8 + pair * 2 + r % 2; }
};

struct Problem : AttentionProblem<bf16> {
  int64_t of_each;
  int others, stages;
  bool by_16_bytes;  // rows of all tensors begin at multiples of 16 bytes
};

// Rows of shared memory for load_matrices: as an A [16, 16], or as the B of two neighbouring blocks
// from a tile [rows of B, columns of B], transposed.
template <int stride>
__device__ const bf16* rows_first(const bf16* tile, int row, int column) {
  const Lane lane;
  return tile + (row + lane.index % 16) * stride + column + lane.index / 16 * 8;
}
// As the B of two neighbouring blocks from a tile [columns of B, rows of B].
template <int stride>
__device__ const bf16* columns_first(const bf16* tile, int row, int column) {
  const Lane lane;
  return tile + (row + lane.index / 16 * 8 + lane.index % 8) * stride + column +
         lane.index / 8 % 2 * 8;
}

// tile [rows, width] = `there` rows of head_size elements, `row_stride` apart; the rest is 0. By
// the whole block, asynchronously.
template <int width>
__device__ void load_rows(const Problem& a, const bf16* from, int64_t row_stride, int there,
                          int rows, bf16* tile) {
  constexpr int kStride = TensorCoreTile<width>::kStride, kPieces = width / 8;
  const int threads = static_cast<int>(blockDim.x);
  if (a.by_16_bytes) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += threads) {
      const int row = i / kPieces, column = i % kPieces * 8;
      const bool exists = row < there && column < a.head_size;
      copy_16_async(tile + row * kStride + column, exists ? from + row * row_stride + column : from,
                    exists);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += threads) {
      const int row = i / width, column = i % width;
      const bool exists = row < there && column < a.head_size;
      tile[row * kStride + column] = exists ? from[row * row_stride + column] : bf16{};
    }
  }
}

// The first `there` of 16 rows: to[row, :] = factor * sums. `staging` are 16 rows of shared memory
// that only this warp reads.
template <int width>
__device__ void store_rows(const Problem& a, const Block (&sums)[width / 8],
                           const float (&factor)[2], int there, int64_t row_stride, bf16* staging,
                           bf16* to) {
  constexpr int kStride = TensorCoreTile<width>::kStride, kPieces = width / 8;
  const Lane lane;
  __syncwarp();  // what lay there has been read
#pragma unroll
  for (int b = 0; b < width / 8; ++b)
#pragma unroll
    for (int r = 0; r < 4; r += 2)
      *reinterpret_cast<uint32_t*>(staging + lane.row(r) * kStride + lane.column(b, 0)) =
          pack_bf16(sums[b][r] * factor[r / 2], sums[b][r + 1] * factor[r / 2]);
  __syncwarp();
  if (a.by_16_bytes) {
    for (int i = lane.index; i < kWarpRows * kPieces; i += 32) {
      const int row = i / kPieces, column = i % kPieces * 8;
      if (row < there && column < a.head_size)
        *reinterpret_cast<uint4*>(to + row * row_stride + column) =
            *reinterpret_cast<const uint4*>(staging + row * kStride + column);
    }
  } else {
    for (int i = lane.index; i < kWarpRows * width; i += 32) {
      const int row = i / width, column = i % width;
      if (row < there && column < a.head_size)
        to[row * row_stride + column] = staging[row * kStride + column];
    }
  }
}

// 16 rows of a warp's own, as A: in registers where there are enough.
template <int width, bool held>
struct OwnRows {
  static constexpr int kSteps = width / 16;
  const bf16* rows;
  uint32_t fragments[held ? kSteps : 1][4];

  // The rows are there.
  __device__ explicit OwnRows(const bf16* from) : rows(from) {
    if constexpr (held)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        load_matrices(rows_first<TensorCoreTile<width>::kStride>(rows, 0, step * 16),
                      fragments[step]);
  }
  __device__ void fragment(int step, uint32_t (&a)[4]) const {
    if constexpr (held) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = fragments[step][i];
    } else {
      load_matrices(rows_first<TensorCoreTile<width>::kStride>(rows, 0, step * 16), a);
    }
  }
};

// c[0], c[1] += A times 16 rows of `tile` from `row` on, at 16 columns: a step of A tile^T.
template <int width>
__device__ void multiply_transposed(const uint32_t (&a)[4], const bf16* tile, int row, int column,
                                    Block* c) {
  uint32_t b[4];
  load_matrices(columns_first<TensorCoreTile<width>::kStride>(tile, row, column), b);
  mma_bf16(a, b[0], b[1], c[0]);
  mma_bf16(a, b[2], b[3], c[1]);
}
// c [16, width] += A times 16 rows of `tile` from `row` on.
template <int width>
__device__ void multiply(const uint32_t (&a)[4], const bf16* tile, int row, Block (&c)[width / 8]) {
#pragma unroll
  for (int column = 0; column < width; column += 16) {
    uint32_t b[4];
    load_matrices_transposed(rows_first<TensorCoreTile<width>::kStride>(tile, row, column), b);
    mma_bf16(a, b[0], b[1], c[column / 8]);
    mma_bf16(a, b[2], b[3], c[column / 8 + 1]);
  }
}
// The same for two A.
template <int width>
__device__ void multiply_two(const uint32_t (&a)[4], const uint32_t (&other_a)[4], const bf16* tile,
                             int row, Block (&c)[width / 8], Block (&other_c)[width / 8]) {
#pragma unroll
  for (int column = 0; column < width; column += 16) {
    uint32_t b[4];
    load_matrices_transposed(rows_first<TensorCoreTile<width>::kStride>(tile, row, column), b);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mma_bf16(a, b[2 * i], b[2 * i + 1], c[column / 8 + i]);
      mma_bf16(other_a, b[2 * i], b[2 * i + 1], other_c[column / 8 + i]);
    }
  }
}
// Two neighbouring blocks of sums as A.
__device__ inline void factors_of(const Block* blocks, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    a[i] = pack_bf16(blocks[i / 2][i % 2 * 2], blocks[i / 2][i % 2 * 2 + 1]);
}

template <int count>
__device__ void clear(Block (&blocks)[count]) {
#pragma unroll
  for (int b = 0; b < count; ++b)
#pragma unroll
    for (int r = 0; r < 4; ++r) blocks[b][r] = 0;
}

// f.operator()<all>(), for loops over the 16-row parts of a tile: most tiles have all of them, and
// a loop without conditions mixes their products.
template <class F>
__device__ void with_all_or_some(bool all, F&& f) {
  if (all)
    f.template operator()<true>();
  else
    f.template operator()<false>();
}

// The elementwise product of two A, by the rows of the lane.
__device__ inline void add_products(const uint32_t (&left)[4], const uint32_t (&right)[4],
                                    float (&sums)[2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto low = [](uint32_t two) { return std::bit_cast<float>(two << 16); };
    const auto high = [](uint32_t two) { return std::bit_cast<float>(two & 0xffff0000u); };
    sums[i % 2] = fmaf(low(left[i]), low(right[i]), sums[i % 2]);
    sums[i % 2] = fmaf(high(left[i]), high(right[i]), sums[i % 2]);
  }
}

// Over the four lanes that share a row.
__device__ inline float sum_of_row(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
__device__ inline float max_of_row(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// What a block and a warp work on: own rows first.. of one sequence and head, and places of the
// other side. Positions are in the sequence.
struct Work {
  SequenceTile at;
  int64_t head;
  int warps, warp;
  int n, window;   // of the sequence; how far one sees
  int first, row;  // own rows of the block and of the warp
  int others_first, others_end;

  __device__ explicit Work(const Problem& a) {
    const auto heads = static_cast<unsigned>(a.heads);
    warps = static_cast<int>(blockDim.x) / 32;
    warp = static_cast<int>(threadIdx.x) / 32;
    head = blockIdx.x % heads;
    at = warp_tile_of(blockIdx.x / heads, rows(), a.of_each, a.sequences, a.cu);
    n = static_cast<int>(at.length);
    window = static_cast<int>(a.window);
    first = static_cast<int>(at.first);
    row = first + warp * kWarpRows;
    const OtherPlaces others(first, rows(), n, window, kOtherRows);
    others_first = static_cast<int>(others.first);
    others_end = static_cast<int>(others.end);
  }
  __device__ int rows() const { return warps * kWarpRows; }
  // Whether the block has own rows, and whether the warp has.
  __device__ bool block_is_idle() const { return at.empty(); }
  __device__ bool warp_is_idle() const { return row >= n; }
  // Rows of a tile from `place` on that there are, and how many of them are loaded: sixteens.
  __device__ int there(int place) const { return n - place; }
  __device__ int loaded(int place) const {
    return min(kOtherRows, (others_end - place + kWarpRows - 1) / kWarpRows * kWarpRows);
  }
  // Whether some, or all, of the warp's rows see some, or all, of a tile of the other side.
  __device__ bool sees_some(int place) const {
    return place - window <= row + kWarpRows - 1 && row - window <= place + kOtherRows - 1;
  }
  __device__ bool sees_all(int place) const {
    return place + kOtherRows <= n && place + kOtherRows - 1 - row <= window &&
           row + kWarpRows - 1 - place <= window;
  }
  __device__ bool sees(int own, int other) const {
    return other < n && own - other <= window && other - own <= window;
  }
  __device__ const bf16* part(const Problem& a, int which, int place) const {
    return a.qkv + a.qkv_at(at.begin + place, which, head);
  }
  __device__ int64_t output_at(const Problem& a, int place) const {
    return a.output_at(at.begin + place, head);
  }
  __device__ int64_t value_at(const Problem& a, int place) const {  // of lse
    return (at.begin + place) * a.heads + head;
  }
};

// Dropout of 16 queries and 16 keys: each lane draws 8 values, all read them from shared memory.
struct Mask {
  uint32_t* drawn;  // [32, 4] of this warp
  bool on;
  uint32_t threshold;
  uint64_t key, first_block;

  __device__ Mask(const Problem& a, const Work& work, void* memory)
      : drawn(static_cast<uint32_t*>(memory) + work.warp * 128),
        on(a.dropout.keys != nullptr),
        threshold(a.dropout.threshold),
        key(a.dropout.key(work.at.sequence)),
        first_block(a.dropout.first_element(work.head) / 8) {}

  // Both places are multiples of 16.
  __device__ void draw(int query, int key_place) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Philox p = philox(key, static_cast<uint64_t>(query + lane % 16),
                            first_block + static_cast<uint64_t>(key_place / 8 + lane / 16));
    __syncwarp();  // those before have been read
    reinterpret_cast<uint4*>(drawn)[lane] = uint4{p.v[0], p.v[1], p.v[2], p.v[3]};
    __syncwarp();
  }
  // Of what was drawn.
  __device__ bool keeps(int query, int key_place) const {
    const uint32_t two = drawn[(key_place / 8 * 16 + query) * 4 + key_place % 8 / 2];
    return ((two >> key_place % 2 * 16) & 0xffffu) >= threshold;
  }
};

// compute(place, stage) for each tile of the other side; load(place, stage) begins to bring one.
// The first one has been begun.
template <class Load, class Compute>
__device__ void over_tiles(const Work& work, const Load& load, const Compute& compute) {
  int stage = 0;
  for (int place = work.others_first; place < work.others_end; place += kOtherRows, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is there, and the one before has been read
    if (place + kOtherRows < work.others_end) load(place + kOtherRows, stage ^ 1);
    if (!work.warp_is_idle() && work.sees_some(place)) compute(place, stage);
  }
}

}  // namespace amur::cuda
