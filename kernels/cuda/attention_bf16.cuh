// What the kernels of attention_bf16.cu are made of: rows on their way into shared memory and back,
// products of 16 rows of a warp with a tile, what a warp works on, dropout.
#pragma once

#include <limits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace amur::cuda {

inline constexpr float kLog2E = 1.44269504f;

using Block = float[4];  // of sums, [16, 8]: tensor_core.cuh says who holds what

struct Lane {
  int index = lane_index();
  int group = index / 4, pair = index % 4;

  // Place of value r of block b.
  __device__ int row(int r) const { return group + r / 2 * 8; }
  __device__ int column(int b, int r) const { return b * 8 + pair * 2 + r % 2; }
};

// `plain` has rows of all tensors at multiples of 16 bytes and drops nothing. That is most calls,
// and kernels without the rest get by with fewer registers.
template <bool plain>
struct Problem : AttentionProblem<bf16> {
  int64_t of_each;
  int others;  // TensorCoreLaunch has both
  bool by_16_bytes_;

  __device__ bool by_16_bytes() const { return plain || by_16_bytes_; }
  __device__ bool drops() const { return !plain && dropout.keys != nullptr; }
};

// Rows of shared memory for load_matrices: as an A [16, 16], or as the B of two neighbouring blocks
// from a tile [rows of B, columns of B], transposed.
template <int stride>
__device__ const bf16* rows_first(Lane lane, const bf16* tile, int row, int column) {
  return tile + (row + lane.index % 16) * stride + column + lane.index / 16 * 8;
}
// As the B of two neighbouring blocks from a tile [columns of B, rows of B].
template <int stride>
__device__ const bf16* columns_first(Lane lane, const bf16* tile, int row, int column) {
  return tile + (row + lane.index / 16 * 8 + lane.index % 8) * stride + column +
         lane.index / 8 % 2 * 8;
}

// tile [rows, width] = `there` rows of head_size elements, `row_stride` apart; the rest is 0. By
// the whole block, asynchronously.
template <int width, bool plain>
__device__ void load_rows(const Problem<plain>& a, const bf16* from, int64_t row_stride, int there,
                          int rows, bf16* tile) {
  constexpr int kStride = TensorCoreTile<width>::kStride, kPieces = width / 8;
  const int threads = static_cast<int>(blockDim.x);
  if (a.by_16_bytes()) {
    // A thread stays in its column: few instructions for each piece.
    const int column = static_cast<int>(threadIdx.x % kPieces) * 8, step = threads / kPieces;
    int row = static_cast<int>(threadIdx.x / kPieces);
    from += row * row_stride + column;
    tile += row * kStride + column;
    const int existing = column < a.head_size ? there : 0;
    for (; row < rows; row += step) {
      copy_16_async(tile, from, row < existing);
      from += step * row_stride;
      tile += step * kStride;
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += threads) {
      const int row = i / width, column = i % width;
      const bool exists = row < there && column < a.head_size;
      tile[row * kStride + column] = exists ? from[row * row_stride + column] : bf16{};
    }
  }
}

// The first `there` of 16 rows and `columns` of theirs: to[row, :] = factor * sums. `staging` are
// 16 rows of shared memory that only this warp reads.
template <int width, bool plain>
__device__ void store_rows(const Problem<plain>& a, const Block (&sums)[width / 8],
                           const float (&factor)[2], int there, int columns, int64_t row_stride,
                           bf16* staging, bf16* to) {
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
  if (a.by_16_bytes()) {
    constexpr int kStep = 32 / kPieces;
    const int first = lane.index / kPieces, column = lane.index % kPieces * 8;
    to += first * row_stride + column;
    staging += first * kStride + column;
    const int existing = column < columns ? there : 0;
#pragma unroll
    for (int row = 0; row < kWarpRows; row += kStep) {
      if (first + row < existing)
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staging + row * kStride);
      to += kStep * row_stride;
    }
  } else {
    for (int i = lane.index; i < kWarpRows * width; i += 32) {
      const int row = i / width, column = i % width;
      if (row < there && column < columns)
        to[row * row_stride + column] = staging[row * kStride + column];
    }
  }
}

// 16 rows of a warp's own, as A.
template <int width>
struct OwnRows {
  const bf16* rows;

  __device__ void fragment(Lane lane, int step, uint32_t (&a)[4]) const {
    load_matrices(rows_first<TensorCoreTile<width>::kStride>(lane, rows, 0, step * 16), a);
  }
};

// c[0], c[1] += A times two blocks of B.
__device__ inline void multiply_blocks(const uint32_t (&a)[4], const uint32_t (&b)[4], Block* c) {
  mma_bf16(a, b[0], b[1], c[0]);
  mma_bf16(a, b[2], b[3], c[1]);
}
// c[0], c[1] += A times 16 rows of `tile` from `row` on, at 16 columns: a step of A tile^T.
template <int width>
__device__ void multiply_transposed(Lane lane, const uint32_t (&a)[4], const bf16* tile, int row,
                                    int column, Block* c) {
  uint32_t b[4];
  load_matrices(columns_first<TensorCoreTile<width>::kStride>(lane, tile, row, column), b);
  multiply_blocks(a, b, c);
}
// c[0], c[1] += A times 16 rows of `tile` from `row` on, of 16 columns.
template <int width>
__device__ void multiply_columns(Lane lane, const uint32_t (&a)[4], const bf16* tile, int row,
                                 int column, Block* c) {
  uint32_t b[4];
  load_matrices_transposed(rows_first<TensorCoreTile<width>::kStride>(lane, tile, row, column), b);
  multiply_blocks(a, b, c);
}
// c [16, width] += A times 16 rows of `tile` from `row` on.
template <int width>
__device__ void multiply(Lane lane, const uint32_t (&a)[4], const bf16* tile, int row,
                         Block (&c)[width / 8]) {
#pragma unroll
  for (int column = 0; column < width; column += 16)
    multiply_columns<width>(lane, a, tile, row, column, c + column / 8);
}
// The same for two A.
template <int width>
__device__ void multiply_two(Lane lane, const uint32_t (&a)[4], const uint32_t (&other_a)[4],
                             const bf16* tile, int row, Block (&c)[width / 8],
                             Block (&other_c)[width / 8]) {
#pragma unroll
  for (int column = 0; column < width; column += 16) {
    uint32_t b[4];
    load_matrices_transposed(rows_first<TensorCoreTile<width>::kStride>(lane, tile, row, column),
                             b);
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

// The places from first on, so many and no others.
struct Places {
  int first;
  unsigned count;

  __device__ bool have(int place) const { return static_cast<unsigned>(place - first) < count; }
};

// Down the columns of a warp's blocks [16, 32], of which a lane has added up its own rows:
// mine[2 b + i] is of column(b, i). A lane gets that of column(group / 2, group % 2).
__device__ inline float sum_of_columns(Lane lane, float (&mine)[8]) {
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = (lane.group & half) != 0;
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const float given = upper ? mine[j] : mine[j + half];
      mine[j] = (upper ? mine[j + half] : mine[j]) + __shfl_xor_sync(0xffffffffu, given, half * 4);
    }
  }
  return mine[0];
}

// What a block and a warp work on: own rows first.. of one sequence and head, and places of the
// other side, by tiles of kTile. Positions are in the sequence.
template <int kTile>
struct Work {
  int head, sequence, begin;  // begin: its first token
  int warps, warp;
  int n, window;   // of the sequence; how far one sees
  int first, row;  // own rows of the block and of the warp
  int others_first, others_end;

  template <bool plain>
  __device__ explicit Work(const Problem<plain>& a) {
    const auto heads = static_cast<unsigned>(a.heads);
    warps = static_cast<int>(blockDim.x) / 32;
    warp = static_cast<int>(threadIdx.x) / 32;
    head = static_cast<int>(blockIdx.x % heads);
    const SequenceTile at = warp_tile_of(blockIdx.x / heads, rows(), a.of_each, a.sequences, a.cu);
    sequence = static_cast<int>(at.sequence);
    begin = static_cast<int>(at.begin);
    n = static_cast<int>(at.length);
    window = static_cast<int>(a.window);
    first = static_cast<int>(at.first);
    row = first + warp * kWarpRows;
    const OtherPlaces others(first, rows(), n, window, kTile);
    others_first = static_cast<int>(others.first);
    others_end = static_cast<int>(others.end);
  }
  __device__ int rows() const { return warps * kWarpRows; }
  // Whether the block has own rows, and whether the warp has.
  __device__ bool block_is_idle() const { return first >= n; }
  __device__ bool warp_is_idle() const { return row >= n; }
  // Rows of a tile from `place` on that there are, and how many of them are loaded: sixteens.
  __device__ int there(int place) const { return n - place; }
  __device__ int loaded(int place) const {
    return min(kTile, (others_end - place + kWarpRows - 1) / kWarpRows * kWarpRows);
  }
  // Whether some, or all, of the warp's rows see some, or all, of a tile of the other side. Rows
  // behind the sequence's end see nothing.
  __device__ bool sees_some(int place) const {
    return !warp_is_idle() && place - window <= row + kWarpRows - 1 &&
           row - window <= place + kTile - 1;
  }
  __device__ bool sees_all(int place) const {
    return max(place + kTile, row + kWarpRows) <= n && place + kTile - 1 - row <= window &&
           row + kWarpRows - 1 - place <= window;
  }
  __device__ Places seen(int own) const {
    const int lowest = max(own - window, 0), end = own < n ? min(own + window + 1, n) : 0;
    return {lowest, static_cast<unsigned>(max(end - lowest, 0))};
  }
  // Of this head and a place: in qkv, in tensors like the output, in those like lse.
  template <bool plain>
  __device__ int64_t qkv_at(const Problem<plain>& a, int which, int place) const {
    return a.qkv_at(begin + place, which, head);
  }
  template <bool plain>
  __device__ int64_t output_at(const Problem<plain>& a, int place) const {
    return a.output_at(begin + place, head);
  }
  template <bool plain>
  __device__ int64_t value_at(const Problem<plain>& a, int place) const {
    return (begin + place) * a.heads + head;
  }
};

// Dropout of 16 queries and 16 keys: each lane draws 8 values, all read them from shared memory.
struct Mask {
  uint32_t* drawn;  // [32, 4] of this warp
  bool on;
  uint32_t threshold;
  uint64_t key, first_block;

  template <bool plain, int kTile>
  __device__ Mask(const Problem<plain>& a, const Work<kTile>& work, void* memory)
      : drawn(static_cast<uint32_t*>(memory) + work.warp * 128),
        on(a.drops()),
        threshold(a.dropout.threshold),
        key(a.dropout.key(work.sequence)),
        first_block(a.dropout.first_element(work.head) / 8) {}

  // Behind the memory of all warps.
  template <class T>
  __device__ T* end(const auto& work) const {
    return reinterpret_cast<T*>(drawn + (work.warps - work.warp) * 128);
  }
  // Both places are multiples of 16.
  __device__ void draw(int query, int key_place) const {
    const int lane = lane_index();
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
template <int kTile, class Load, class Compute>
__device__ void over_tiles(const Work<kTile>& work, const Load& load, const Compute& compute) {
  int stage = 0;
  for (int place = work.others_first; place < work.others_end; place += kTile, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is there, and the one before has been read
    if (place + kTile < work.others_end) load(place + kTile, stage ^ 1);
    compute(place, stage);
  }
}

// Scores of what is not seen become -infinity.
template <int kTile>
__device__ void hide_unseen(Lane lane, const Work<kTile>& work, int place,
                            Block (&scores)[kTile / 8]) {
  if (work.sees_all(place)) return;
  const Places seen[2] = {work.seen(work.row + lane.row(0)), work.seen(work.row + lane.row(2))};
#pragma unroll
  for (int b = 0; b < kTile / 8; ++b)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (!seen[r / 2].have(place + lane.column(b, r)))
        scores[b][r] = -std::numeric_limits<float>::infinity();
}

// Backward. Of a backward tile of the other side: parts of 16 rows, blocks of 8.
inline constexpr int kParts = kBackwardTile / 16, kBlocks = kBackwardTile / 8;
// scores = rows tile^T and d_scores = d_rows d_tile^T, of a tile of so many parts; 0 behind them.
template <int width>
__device__ void multiply_both(Lane lane, const OwnRows<width>& rows, const bf16* tile,
                              const OwnRows<width>& d_rows, const bf16* d_tile, int parts,
                              Block (&scores)[kBlocks], Block (&d_scores)[kBlocks]) {
  clear(scores);
  clear(d_scores);
  with_all_or_some(parts == kParts, [&]<bool all>() {
    // One product after the other, for the registers that their factors take.
    const auto multiply_all = [&](const OwnRows<width>& own, const bf16* other, Block* c) {
#pragma unroll
      for (int step = 0; step < width / 16; ++step) {
        uint32_t factors[4];
        own.fragment(lane, step, factors);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          if (all || part < parts)
            multiply_transposed<width>(lane, factors, other, part * 16, step * 16, c + part * 2);
      }
    };
    multiply_all(rows, tile, scores);
    multiply_all(d_rows, d_tile, d_scores);
  });
}

// P of own keys and the queries of a tile, from its products and the queries' lse.
__device__ inline void probabilities_of_keys(Lane lane, const Work<kBackwardTile>& work, int place,
                                             float scale, const float* lse, Block (&p)[kBlocks]) {
  const int parts = work.loaded(place) / 16;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
    if (b < parts * 2)
#pragma unroll
      for (int r = 0; r < 4; ++r) p[b][r] = fmaf(p[b][r], scale, -kLog2E * lse[lane.column(b, r)]);
  hide_unseen(lane, work, place, p);
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int r = 0; r < 4; ++r) p[b][r] = exp2_approximate(p[b][r]);
}

// dV += (P M)^T dO of 16 queries from `query` on, as 1-p times it, and dP becomes dP M.
template <int width, bool plain>
__device__ void add_values(Lane lane, const Problem<plain>& a, const Work<kBackwardTile>& work,
                           const Mask& mask, int query, const Block* p, Block* dp,
                           const bf16* d_out, int row, Block (&dv)[width / 8]) {
  Block kept[2];
#pragma unroll
  for (int i = 0; i < 8; ++i) kept[i / 4][i % 4] = p[i / 4][i % 4];
  if (mask.on) {
    mask.draw(query, work.row);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool keeps = mask.keeps(lane.column(i / 4, i % 4), lane.row(i % 4));
      float &x = kept[i / 4][i % 4], &d = dp[i / 4][i % 4];
      x = keeps ? x : 0;
      d = keeps ? d * a.dropout.factor : 0;
    }
  }
  uint32_t factors[4];
  factors_of(kept, factors);
  multiply<width>(lane, factors, d_out, row, dv);
}

// To the own rows of dqkv, by way of shared memory that only this warp reads.
template <int width, bool plain>
__device__ void store_keys(const Problem<plain>& a, const Work<kBackwardTile>& work,
                           const Block (&dk)[width / 8], const Block (&dv)[width / 8], bf16* k,
                           bf16* v, bf16* dqkv) {
  if (work.warp_is_idle()) return;
  const float key_factor[2] = {a.scale, a.scale};
  const float value_factor[2] = {a.dropout.factor, a.dropout.factor};
  store_rows<width>(a, dk, key_factor, work.there(work.row), a.head_size, a.qkv_stride(), k,
                    dqkv + work.qkv_at(a, 1, work.row));
  store_rows<width>(a, dv, value_factor, work.there(work.row), a.head_size, a.qkv_stride(), v,
                    dqkv + work.qkv_at(a, 2, work.row));
}

// Own rows of keys and values.
template <int width, bool plain>
__device__ void load_keys(const Problem<plain>& a, const Work<kBackwardTile>& work, bf16* k,
                          bf16* v) {
  for (int which = 1; which <= 2; ++which)
    load_rows<width>(a, a.qkv + work.qkv_at(a, which, work.first), a.qkv_stride(),
                     work.there(work.first), work.rows(), which == 1 ? k : v);
}
// A tile of queries, and behind it that of the output's gradient.
template <int width, bool plain>
__device__ void load_queries(const Problem<plain>& a, const Work<kBackwardTile>& work,
                             const bf16* d_output, int place, bf16* tile) {
  const int there = work.there(place), rows = work.loaded(place);
  load_rows<width>(a, a.qkv + work.qkv_at(a, 0, place), a.qkv_stride(), there, rows, tile);
  load_rows<width>(a, d_output + work.output_at(a, place), a.output_stride(), there, rows,
                   tile + kBackwardTile * TensorCoreTile<width>::kStride);
}
// Of the same tile: one value of `from` [T, heads] each.
template <bool plain>
__device__ void load_values(const Problem<plain>& a, const Work<kBackwardTile>& work,
                            const float* from, int place, float* values) {
  const int i = static_cast<int>(threadIdx.x), there = work.there(place);
  if (i < work.loaded(place))
    copy_4_async(values + i, from + work.value_at(a, i < there ? place + i : place), i < there);
}

}  // namespace amur::cuda
