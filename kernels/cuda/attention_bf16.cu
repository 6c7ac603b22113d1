// Attention in bf16 by tensor cores (FlashAttention-2: Dao, 2023), forward and backward.
//
// A warp takes 16 rows of one sequence and head: queries for the output and for dQ, keys for dK and
// dV. Its block brings tiles of the other side into shared memory, in order, each while the one
// before is worked on; scores, probabilities and sums stay in the registers of the warp that owns
// their rows, where the scores' fragments become factors of the next product as they are. No sum is
// shared between warps, so each has one order. It is that of places in the sequence, and what is
// added for places that are not seen is exactly 0: a result depends neither on the other sequences
// of the chunk nor on how many warps share a block, and a window that holds the sequence gives the
// bits of none.
//
// Of a text with a warp for each 16 keys one block computes all gradients: scores and exponentials
// once, and nothing is read twice. Its warps share two things by way of shared memory: the row sums
// of their keys, added up in order, and dS of a tile of queries, for dQ. Which texts these are
// depends on their length alone, so that their bits do too.
//
// Numbers. Products have bf16 factors and f32 sums. Scores, probabilities, running maxima and sums
// are f32; the probabilities and dS are rounded to bf16 as factors of the products behind them, the
// results once at the end. The row sum of the backward is taken over P dP and not over dO O, whose
// rounding would go into all keys alike. dQ of a long text needs it before it is known: with D' =
// rowsum(dO O) of the rounded output, which is near it,
//   dQ = scale (P (dP - D')) K - scale (D - D') P K,   D = rowsum(P dP),
// in one sweep: the second term is small, so its rounding is nothing.
//
// What to expect, by arithmetic: nothing here has been measured. With n tokens a text and d
// elements a head, the forward has 4 n d operations for the 8 d bytes of a token and head: n / 2 a
// byte. The backward has 10 n d for 14 d bytes of a short text (5 n / 7) and, in two kernels of 4
// products each, 16 n d for 24 d bytes of a long one (2 n / 3). By their data sheets an A100 has
// 156 operations a byte, an H100 295, an H200 206: products alone would leave texts of up to some
// 300 to 600 tokens to wait for memory. But a warp issues many other instructions beside them
// (docs/gpu.md counts them), about as long as memory takes. Beyond, loads from shared memory are
// the limit, for a warp has 16 rows only: 16 operations a byte and 128 bytes a clock make 2,048
// operations a clock and multiprocessor, which is the whole rate of an A100's tensor cores and half
// of an H100's. No more than that half is to be expected there; `wgmma`, of sm_90 alone, would lift
// it.
#include <limits>

#include "kernels/cuda/attention_bf16.cuh"

namespace amur::cuda {
namespace {

// Blocks of a multiprocessor: as many as registers suffice for with next to no spilling.
constexpr int forward_blocks(int width) {
  return width <= 64 ? 2 : 1;
}
constexpr int queries_blocks(int width) {
  return width <= 32 ? 3 : 2;
}
constexpr int keys_blocks(int width) {
  return width <= 32 ? 4 : width <= 64 ? 3 : 2;
}
constexpr int whole_blocks(int width, bool plain) {
  return width <= 64 && plain ? 2 : 1;
}

// Softmax with a running maximum, of products before the scale, which is positive: the sums so far
// shrink where it grows.
template <int width, bool plain>
__global__ void __launch_bounds__(kMostForwardWarps * 32, forward_blocks(width))
    forward_kernel(Problem<plain> a, bf16* output, float* lse) {
  using Tile = TensorCoreTile<width>;
  constexpr int kParts = Tile::kForwardTile / 16, kBlocks = Tile::kForwardTile / 8;
  const Work<Tile::kForwardTile> work(a);
  if (work.block_is_idle()) return;
  const int tile_size = a.others * Tile::kStride;
  auto* q = shared_memory<bf16>();
  const Mask mask(a, work, q + work.rows() * Tile::kStride);
  bf16* tiles = mask.end<bf16>(work);  // [stages, 2, others]: keys, values
  const auto load = [&](int place, int stage) {
    for (int which = 1; which <= 2; ++which)
      load_rows<width>(a, a.qkv + work.qkv_at(a, which, place), a.qkv_stride(), work.there(place),
                       work.loaded(place), tiles + (stage * 2 + which - 1) * tile_size);
  };
  load_rows<width>(a, a.qkv + work.qkv_at(a, 0, work.first), a.qkv_stride(), work.there(work.first),
                   work.rows(), q);
  load(work.others_first, 0);

  const Lane lane;
  bf16* own = q + work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width> queries{own};
  const float scale = a.scale * kLog2E, nothing = -std::numeric_limits<float>::infinity();
  float most[2] = {nothing, nothing}, total[2] = {0, 0};
  Block sums[width / 8];
  clear(sums);
  over_tiles(work, load, [&](int place, int stage) {
    if (!work.sees_some(place)) return;
    const Lane lane;
    const bf16 *k = tiles + stage * 2 * tile_size, *v = k + tile_size;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks];
    clear(p);
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll
      for (int step = 0; step < width / 16; ++step) {
        uint32_t factors[4];
        queries.fragment(lane, step, factors);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          if (all || part < parts)
            multiply_transposed<width>(lane, factors, k, part * 16, step * 16, p + part * 2);
      }
    });
    hide_unseen(lane, work, place, p);
    float shift[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = most[i];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) top = fmaxf(top, fmaxf(p[b][2 * i], p[b][2 * i + 1]));
      top = max_of_row(top);
      shift[i] = top == nothing ? 0 : top * scale;  // nothing: the row has seen no key yet
      const float shrink = exp2_approximate(fmaf(most[i], scale, -shift[i]));
      most[i] = top;
      total[i] *= shrink;
#pragma unroll
      for (int b = 0; b < width / 8; ++b) {
        sums[b][2 * i] *= shrink;
        sums[b][2 * i + 1] *= shrink;
      }
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        p[b][r] = exp2_approximate(fmaf(p[b][r], scale, -shift[r / 2]));
        total[r / 2] += p[b][r];  // of the lane's columns
      }
    if (mask.on)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (part < parts) {
          mask.draw(work.row, place + part * 16);
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (!mask.keeps(lane.row(i % 4), lane.column(i / 4, i % 4)))
              p[part * 2 + i / 4][i % 4] = 0;
        }
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (all || part < parts) {
          uint32_t factors[4];
          factors_of(p + part * 2, factors);
          multiply<width>(lane, factors, v, part * 16, sums);
        }
    });
  });
  if (work.warp_is_idle()) return;
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] = sum_of_row(total[i]);
    factor[i] = a.dropout.factor / total[i];
  }
  if (lane.pair < 2) {  // one of the rows each
    const int row = work.row + lane.row(2 * lane.pair);
    const bool upper = lane.pair == 0;
    if (row < work.n)
      lse[work.value_at(a, row)] =
          fmaf(upper ? most[0] : most[1], a.scale, logf(upper ? total[0] : total[1]));
  }
  store_rows<width>(a, sums, factor, work.there(work.row), a.head_size, a.output_stride(), own,
                    output + work.output_at(a, work.row));
}

// With P the probabilities, M the mask over 1-p, and dP = (dO V^T) M:
//   dV = (P M)^T dO,  dS = P (dP - rowsum(P dP)),  dQ = scale dS K,  dK = scale dS^T Q.
// Here dQ and the row sums, as said above.
template <int width, bool plain>
__global__ void __launch_bounds__(kMostBackwardWarps * 32, queries_blocks(width))
    backward_queries_kernel(Problem<plain> a, const bf16* d_output, const bf16* output,
                            const float* lse, float* along, bf16* dqkv) {
  using Tile = TensorCoreTile<width>;
  const Work<kBackwardTile> work(a);
  if (work.block_is_idle() || work.n <= Tile::kWholeText) return;
  constexpr int kTileSize = kBackwardTile * Tile::kStride;
  const int own_size = work.rows() * Tile::kStride;
  auto* q = shared_memory<bf16>();
  bf16* d_out = q + own_size;
  const Mask mask(a, work, d_out + own_size);
  bf16* tiles = mask.end<bf16>(work);  // [2, 2, kBackwardTile]: keys, values
  bf16* out = tiles + 2 * kTileSize;   // until the second tile comes
  const auto load = [&](int place, int stage) {
    for (int which = 1; which <= 2; ++which)
      load_rows<width>(a, a.qkv + work.qkv_at(a, which, place), a.qkv_stride(), work.there(place),
                       work.loaded(place), tiles + (stage * 2 + which - 1) * kTileSize);
  };
  const auto load_own = [&](const bf16* from, int64_t stride, bf16* to) {
    load_rows<width>(a, from, stride, work.there(work.first), work.rows(), to);
  };
  load_own(a.qkv + work.qkv_at(a, 0, work.first), a.qkv_stride(), q);
  load_own(d_output + work.output_at(a, work.first), a.output_stride(), d_out);
  load_own(output + work.output_at(a, work.first), a.output_stride(), out);
  load(work.others_first, 0);
  wait_for_copies();
  __syncthreads();

  const Lane lane;
  const int own = work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width> queries{q + own}, d_outputs{d_out + own};
  float log_sum[2], near[2] = {0, 0}, sum[2] = {0, 0};  // near: D', of the lane's columns first
#pragma unroll
  for (int step = 0; step < width / 16; ++step) {
    uint32_t left[4], right[4];
    d_outputs.fragment(lane, step, left);
    load_matrices(rows_first<Tile::kStride>(lane, out + own, 0, step * 16), right);
    add_products(left, right, near);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    near[i] = sum_of_row(near[i]);
    const int row = work.row + lane.row(2 * i);
    log_sum[i] = row < work.n ? lse[work.value_at(a, row)] * kLog2E : 0;
  }
  const float scale = a.scale * kLog2E;
  Block dq[width / 8], pk[width / 8];
  clear(dq);
  clear(pk);
  over_tiles(work, load, [&](int place, int stage) {
    if (!work.sees_some(place)) return;
    const Lane lane;
    const bf16 *k = tiles + stage * 2 * kTileSize, *v = k + kTileSize;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks], dp[kBlocks];
    multiply_both<width>(lane, queries, k, d_outputs, v, parts, p, dp);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) p[b][r] = fmaf(p[b][r], scale, -log_sum[r / 2]);
    hide_unseen(lane, work, place, p);
    if (mask.on)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (part < parts) {
          mask.draw(work.row, place + part * 16);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            float& x = dp[part * 2 + i / 4][i % 4];
            x = mask.keeps(lane.row(i % 4), lane.column(i / 4, i % 4)) ? x * a.dropout.factor : 0;
          }
        }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        p[b][r] = exp2_approximate(p[b][r]);
        sum[r / 2] = fmaf(p[b][r], dp[b][r], sum[r / 2]);
        dp[b][r] = p[b][r] * (dp[b][r] - near[r / 2]);
      }
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (all || part < parts) {
          uint32_t ds_factors[4], p_factors[4];
          factors_of(dp + part * 2, ds_factors);
          factors_of(p + part * 2, p_factors);
          multiply_two<width>(lane, ds_factors, p_factors, k, part * 16, dq, pk);
        }
    });
  });
  if (work.warp_is_idle()) return;
  const float factor[2] = {a.scale, a.scale};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = sum_of_row(sum[i]);
    const int row = work.row + lane.row(2 * i);
    if (lane.pair == 0 && row < work.n) along[work.value_at(a, row)] = sum[i];
#pragma unroll
    for (int b = 0; b < width / 8; ++b)
#pragma unroll
      for (int r = 2 * i; r < 2 * i + 2; ++r) dq[b][r] = fmaf(near[i] - sum[i], pk[b][r], dq[b][r]);
  }
  store_rows<width>(a, dq, factor, work.there(work.row), a.head_size, a.qkv_stride(), q + own,
                    dqkv + work.qkv_at(a, 0, work.row));
}

// dK and dV: all is transposed, own rows are keys.
template <int width, bool plain>
__global__ void __launch_bounds__(kMostBackwardWarps * 32, keys_blocks(width))
    backward_keys_kernel(Problem<plain> a, const bf16* d_output, const float* lse,
                         const float* along, bf16* dqkv) {
  using Tile = TensorCoreTile<width>;
  const Work<kBackwardTile> work(a);
  if (work.block_is_idle() || work.n <= Tile::kWholeText) return;
  constexpr int kTileSize = kBackwardTile * Tile::kStride;
  const int own_size = work.rows() * Tile::kStride;
  auto* values = shared_memory<float>();  // [2, 2, kBackwardTile]
  auto* k = reinterpret_cast<bf16*>(values + 4 * kBackwardTile);
  bf16* v = k + own_size;
  const Mask mask(a, work, v + own_size);
  bf16* tiles = mask.end<bf16>(work);  // [2, 2, kBackwardTile]: queries, output's gradient
  const auto load = [&](int place, int stage) {
    float* value = values + stage * 2 * kBackwardTile;
    load_queries<width>(a, work, d_output, place, tiles + stage * 2 * kTileSize);
    load_values(a, work, lse, place, value);
    load_values(a, work, along, place, value + kBackwardTile);
  };
  load_keys<width>(a, work, k, v);
  load(work.others_first, 0);

  const Lane lane;
  const int own = work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width> keys{k + own}, value_rows{v + own};
  const float scale = a.scale * kLog2E;
  Block dk[width / 8], dv[width / 8];
  clear(dk);
  clear(dv);
  over_tiles(work, load, [&](int place, int stage) {
    if (!work.sees_some(place)) return;
    const Lane lane;
    const bf16 *q = tiles + stage * 2 * kTileSize, *d_out = q + kTileSize;
    const float *log_sums = values + stage * 2 * kBackwardTile, *sums = log_sums + kBackwardTile;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks], dp[kBlocks];
    multiply_both<width>(lane, keys, q, value_rows, d_out, parts, p, dp);
    probabilities_of_keys(lane, work, place, scale, log_sums, p);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      if (part < parts) {
        add_values<width>(lane, a, work, mask, place + part * 16, p + part * 2, dp + part * 2,
                          d_out, part * 16, dv);
#pragma unroll
        for (int b = part * 2; b < part * 2 + 2; ++b)
#pragma unroll
          for (int r = 0; r < 4; ++r) dp[b][r] = p[b][r] * (dp[b][r] - sums[lane.column(b, r)]);
        uint32_t factors[4];
        factors_of(dp + part * 2, factors);
        multiply<width>(lane, factors, q, part * 16, dk);
      }
  });
  store_keys<width>(a, work, dk, dv, k + own, v + own, dqkv);
}

// All gradients of a text that has a warp for each 16 keys: as the kernel above, but the warps add
// up the row sums of their keys, and share dQ = scale dS K by parts of its columns.
template <int width, bool plain>
__global__ void __launch_bounds__(TensorCoreTile<width>::kWholeText * 2, whole_blocks(width, plain))
    backward_whole_kernel(Problem<plain> a, const bf16* d_output, const float* lse, bf16* dqkv) {
  using Tile = TensorCoreTile<width>;
  constexpr int kScoreStride = WholeTextScores::kStride;
  const Work<kBackwardTile> work(a);
  if (work.block_is_idle() || work.n > Tile::kWholeText) return;
  constexpr int kTileSize = kBackwardTile * Tile::kStride;
  const int own_size = work.rows() * Tile::kStride;
  auto* log_sums = shared_memory<float>();     // [2, kBackwardTile]
  float* sums = log_sums + 2 * kBackwardTile;  // [warps, kBackwardTile]
  auto* k = reinterpret_cast<bf16*>(sums + Tile::kWholeText / kWarpRows * kBackwardTile);
  bf16 *v = k + own_size, *d_scores = v + own_size;  // [rows, kBackwardTile]: of keys and queries
  bf16* staging = d_scores + work.rows() * kScoreStride;
  const Mask mask(a, work, staging + work.rows() * WholeTextStaging::kStride);
  bf16* tiles = mask.end<bf16>(work);  // [stages, 2, kBackwardTile]: queries, output's gradient
  const auto load = [&](int place, int stage) {
    load_queries<width>(a, work, d_output, place, tiles + stage * 2 * kTileSize);
    load_values(a, work, lse, place, log_sums + stage * kBackwardTile);
  };
  load_keys<width>(a, work, k, v);
  load(work.others_first, 0);

  const Lane lane;
  const int own = work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width> keys{k + own}, value_rows{v + own};
  const int slabs = (work.n + kWarpRows - 1) / kWarpRows;
  Block dk[width / 8], dv[width / 8];
  clear(dk);
  clear(dv);
  over_tiles(work, load, [&](int place, int stage) {
    const Lane lane;
    const bf16 *q = tiles + stage * 2 * kTileSize, *d_out = q + kTileSize;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks], dp[kBlocks];
    if (!work.warp_is_idle()) {
      multiply_both<width>(lane, keys, q, value_rows, d_out, parts, p, dp);
      probabilities_of_keys(lane, work, place, a.scale * kLog2E, log_sums + stage * kBackwardTile,
                            p);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (part < parts)
          add_values<width>(lane, a, work, mask, place + part * 16, p + part * 2, dp + part * 2,
                            d_out, part * 16, dv);
      float mine[kBlocks * 2];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          mine[b * 2 + i] = fmaf(p[b][i], dp[b][i], p[b][i + 2] * dp[b][i + 2]);
      sums[work.warp * kBackwardTile + lane.column(lane.group / 2, lane.group % 2)] =
          sum_of_columns(lane, mine);
    }
    __syncthreads();  // the sums are there
    if (!work.warp_is_idle()) {
      float sum = 0;  // of the lane's query
#pragma unroll
      for (int slab = 0; slab < Tile::kWholeText / kWarpRows; ++slab)
        if (slab < slabs) sum += sums[slab * kBackwardTile + lane.index];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float of_column = __shfl_sync(0xffffffffu, sum, lane.column(b, i));
          dp[b][i] = p[b][i] * (dp[b][i] - of_column);
          dp[b][i + 2] = p[b][i + 2] * (dp[b][i + 2] - of_column);
        }
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (part < parts) {
          uint32_t factors[4];
          factors_of(dp + part * 2, factors);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            *reinterpret_cast<uint32_t*>(
                d_scores + (work.warp * kWarpRows + lane.row(i % 2 * 2)) * kScoreStride +
                lane.column(part * 2 + i / 2, 0)) = factors[i];
          multiply<width>(lane, factors, q, part * 16, dk);
        }
    }
    __syncthreads();  // dS is there
    for (int unit = work.warp; unit < kParts * (width / 16); unit += work.warps) {
      const int row = unit % kParts * 16, column = unit / kParts * 16;
      if (row >= work.loaded(place)) continue;
      Block dq[2];
      clear(dq);
      for (int slab = 0; slab < slabs; ++slab) {
        uint32_t factors[4];
        load_matrices_transposed(columns_first<kScoreStride>(lane, d_scores, slab * 16, row),
                                 factors);
        multiply_columns<width>(lane, factors, k, slab * 16, column, dq);
      }
      const float factor[2] = {a.scale, a.scale};
      store_rows<16>(a, dq, factor, work.there(place + row), a.head_size - column, a.qkv_stride(),
                     staging + work.warp * kWarpRows * WholeTextStaging::kStride,
                     dqkv + work.qkv_at(a, 0, place + row) + column);
    }
  });
  __syncthreads();  // the keys have been read
  store_keys<width>(a, work, dk, dv, k + own, v + own, dqkv);
}

// Calls f.template operator()<width, plain>(problem) with the smallest width that holds the heads;
// `tensors` are all that have rows of a token and head.
template <class F>
void for_case(const AttentionProblem<bf16>& problem, std::initializer_list<ConstTensorView> tensors,
              F&& f) {
  bool by_16_bytes = problem.head_size % 8 == 0;
  for (const ConstTensorView& t : tensors)
    by_16_bytes = by_16_bytes && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  const auto with_width = [&]<int width>() {
    if (by_16_bytes && problem.dropout.keys == nullptr)
      return f.template operator()<width>(Problem<true>{problem, 0, 0, true});
    f.template operator()<width>(Problem<false>{problem, 0, 0, by_16_bytes});
  };
  if (problem.head_size <= 32) return with_width.template operator()<32>();
  if (problem.head_size <= 64) return with_width.template operator()<64>();
  with_width.template operator()<kWidestHead>();
}

template <int width>
TensorCoreLaunch launch_for(AttentionPass pass, const PackedSequences& packed,
                            ConstTensorView qkv) {
  return tensor_core_launch<width>(pass, qkv.rows(), packed.sequences(), packed.longest,
                                   qkv.shape()[2]);
}

template <class P, class... Arguments, class... Given>
void start(void (*kernel)(P, Arguments...), const TensorCoreLaunch& l, cudaStream_t stream,
           P problem, Given... arguments) {
  problem.of_each = l.of_each;
  problem.others = l.others;
  allow_shared_memory(kernel, l.bytes);
  kernel<<<static_cast<unsigned>(l.blocks), static_cast<unsigned>(l.warps * 32), l.bytes, stream>>>(
      problem, arguments...);
  check_launch();
}

}  // namespace

void attention_forward_bf16(const PackedSequences& packed, ConstTensorView qkv, double scale,
                            const DropoutSite& dropout, TensorView o, TensorView lse,
                            int64_t window, cudaStream_t stream) {
  AMUR_CHECK(scale > 0, "attention_forward: scores times {}", scale);
  for_case(attention_problem<bf16>(packed, qkv, scale, dropout, window), {qkv, o},
           [&]<int width, bool plain>(const Problem<plain>& problem) {
             start(forward_kernel<width, plain>,
                   launch_for<width>(AttentionPass::forward, packed, qkv), stream, problem,
                   o.as<bf16>(), lse.as<float>());
           });
}

void attention_backward_bf16(const PackedSequences& packed, ConstTensorView d_output,
                             ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                             double scale, const DropoutSite& dropout, TensorView dqkv,
                             int64_t window, Stream stream) {
  for_case(attention_problem<bf16>(packed, qkv, scale, dropout, window),
           {qkv, d_output, output, dqkv},
           [&]<int width, bool plain>(const Problem<plain>& problem) {
             const auto launch = [&](AttentionPass pass, auto* kernel, auto... arguments) {
               start(kernel, launch_for<width>(pass, packed, qkv), stream_of(stream), problem,
                     d_output.as<bf16>(), arguments...);
             };
             launch(AttentionPass::whole, backward_whole_kernel<width, plain>, lse.as<float>(),
                    dqkv.as<bf16>());
             if (packed.longest <= TensorCoreTile<width>::kWholeText) return;
             const Scratch along(lse.bytes(), qkv.device(), stream);
             launch(AttentionPass::queries, backward_queries_kernel<width, plain>,
                    output.as<bf16>(), lse.as<float>(), along.as<float>(), dqkv.as<bf16>());
             launch(AttentionPass::keys, backward_keys_kernel<width, plain>, lse.as<float>(),
                    along.as<const float>(), dqkv.as<bf16>());
           });
}

}  // namespace amur::cuda
