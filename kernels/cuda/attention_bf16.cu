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
// Numbers. Products have bf16 factors and f32 sums. Scores, probabilities, running maxima and sums
// are f32; the probabilities and dS are rounded to bf16 as factors of the products behind them, the
// results once at the end. The row sum of the backward is taken over P dP and not over dO O, whose
// rounding would go into all keys alike. dQ needs it before it is known: with D' = rowsum(dO O) of
// the rounded output, which is near it,
//   dQ = scale (P (dP - D')) K - scale (D - D') P K,   D = rowsum(P dP),
// in one sweep: the second term is small, so its rounding is nothing.
//
// What to expect, by arithmetic: nothing here has been measured. With n tokens a text and d
// elements a head, the forward has 4 n d operations for the 8 d bytes of a token and head: n / 2 a
// byte. The backward, in two kernels of 4 products each, has 16 n d for 24 d bytes: 2 n / 3. By
// their data sheets an A100 has 156 operations a byte, an H100 295, an H200 206: short texts, up to
// some 300 to 600 tokens, wait for memory, and what counts is the fraction of copy bandwidth.
// Beyond, loads from shared memory are the limit, for a warp has 16 rows only: 16 operations a byte
// and 128 bytes a clock make 2,048 operations a clock and multiprocessor, which is the whole rate
// of an A100's tensor cores and half of an H100's. No more than that half is to be expected there;
// `wgmma`, of sm_90 alone, would lift it.
#include <limits>

#include "kernels/cuda/attention_bf16.cuh"

namespace amur::cuda {
namespace {

// Blocks of a multiprocessor: as many as registers suffice for without spilling.
constexpr int forward_blocks(int width) {
  return width <= 64 ? 2 : 1;
}
constexpr int queries_blocks(int width) {
  return width <= 32 ? 3 : 2;
}
constexpr int keys_blocks(int width) {
  return width <= 32 ? 4 : width <= 64 ? 3 : 2;
}

// Of a tile of the other side: parts of 16 rows, blocks of 8.
constexpr int kParts = kOtherRows / 16, kBlocks = kOtherRows / 8;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Softmax with a running maximum: the sums so far shrink where it grows. Scores are in units of
// log 2.
template <int width>
__global__ void __launch_bounds__(kMostForwardWarps * 32, forward_blocks(width))
    forward_kernel(Problem a, bf16* output, float* lse) {
  using Tile = TensorCoreTile<width>;
  const Work work(a);
  if (work.block_is_idle()) return;
  const int tile_size = a.others * Tile::kStride;
  auto* q = shared_memory<bf16>();
  bf16* tiles = q + work.rows() * Tile::kStride;  // [stages, 2, others]: keys, values
  const Mask mask(a, work, tiles + a.stages * 2 * tile_size);
  const auto load = [&](int place, int stage) {
    for (int which = 1; which <= 2; ++which)
      load_rows<width>(a, work.part(a, which, place), a.qkv_stride(), work.there(place),
                       work.loaded(place), tiles + (stage * 2 + which - 1) * tile_size);
  };
  load_rows<width>(a, work.part(a, 0, work.first), a.qkv_stride(), work.there(work.first),
                   work.rows(), q);
  load(work.others_first, 0);
  wait_for_copies();
  __syncthreads();

  const Lane lane;
  bf16* own = q + work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width, true> queries(own);
  const float scale = a.scale * kLog2E, nothing = -std::numeric_limits<float>::infinity();
  float most[2] = {nothing, nothing}, total[2] = {0, 0};
  Block sums[width / 8];
  clear(sums);
  over_tiles(work, load, [&](int place, int stage) {
    const bf16 *k = tiles + stage * 2 * tile_size, *v = k + tile_size;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks];
    clear(p);
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (all || part < parts)
#pragma unroll
          for (int step = 0; step < width / 16; ++step) {
            uint32_t factors[4];
            queries.fragment(step, factors);
            multiply_transposed<width>(factors, k, part * 16, step * 16, p + part * 2);
          }
    });
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) p[b][r] *= scale;
    if (!work.sees_all(place))
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          if (!work.sees(work.row + lane.row(r), place + lane.column(b, r))) p[b][r] = nothing;
    float shift[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = most[i];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) top = fmaxf(top, fmaxf(p[b][2 * i], p[b][2 * i + 1]));
      top = max_of_row(top);
      shift[i] = top == nothing ? 0 : top;  // nothing: the row has seen no key yet
      const float shrink = exp2_approximate(most[i] - shift[i]);
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
        p[b][r] = exp2_approximate(p[b][r] - shift[r / 2]);
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
          multiply<width>(factors, v, part * 16, sums);
        }
    });
  });
  if (work.warp_is_idle()) return;
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] = sum_of_row(total[i]);
    factor[i] = a.dropout.factor / total[i];
    const int row = work.row + lane.row(2 * i);
    if (lane.pair == 0 && row < work.n)
      lse[work.value_at(a, row)] = fmaf(most[i], kLn2, logf(total[i]));
  }
  store_rows<width>(a, sums, factor, work.there(work.row), a.output_stride(), own,
                    output + work.output_at(a, work.row));
}

// With P the probabilities, M the mask over 1-p, and dP = (dO V^T) M:
//   dV = (P M)^T dO,  dS = P (dP - rowsum(P dP)),  dQ = scale dS K,  dK = scale dS^T Q.
// Here dQ and the row sums, as said above.
template <int width>
__global__ void __launch_bounds__(kMostBackwardWarps * 32, queries_blocks(width))
    backward_queries_kernel(Problem a, const bf16* d_output, const bf16* output, const float* lse,
                            float* along, bf16* dqkv) {
  using Tile = TensorCoreTile<width>;
  const Work work(a);
  if (work.block_is_idle()) return;
  const int tile_size = a.others * Tile::kStride, own_size = work.rows() * Tile::kStride;
  auto* q = shared_memory<bf16>();
  bf16 *d_out = q + own_size, *tiles = d_out + own_size;  // [stages, 2, others]: keys, values
  bf16* out = tiles + 2 * tile_size;                      // until the second tile comes
  const Mask mask(a, work, tiles + a.stages * 2 * tile_size);
  const auto load = [&](int place, int stage) {
    for (int which = 1; which <= 2; ++which)
      load_rows<width>(a, work.part(a, which, place), a.qkv_stride(), work.there(place),
                       work.loaded(place), tiles + (stage * 2 + which - 1) * tile_size);
  };
  const auto load_own = [&](const bf16* from, int64_t stride, bf16* to) {
    load_rows<width>(a, from, stride, work.there(work.first), work.rows(), to);
  };
  load_own(work.part(a, 0, work.first), a.qkv_stride(), q);
  load_own(d_output + work.output_at(a, work.first), a.output_stride(), d_out);
  load_own(output + work.output_at(a, work.first), a.output_stride(), out);
  load(work.others_first, 0);
  wait_for_copies();
  __syncthreads();

  const Lane lane;
  const int own = work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width, false> queries(q + own), d_outputs(d_out + own);
  float log_sum[2], near[2] = {0, 0}, sum[2] = {0, 0};  // near: D', of the lane's columns first
#pragma unroll
  for (int step = 0; step < width / 16; ++step) {
    uint32_t left[4], right[4];
    d_outputs.fragment(step, left);
    load_matrices(rows_first<Tile::kStride>(out + own, 0, step * 16), right);
    add_products(left, right, near);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    near[i] = sum_of_row(near[i]);
    const int row = work.row + lane.row(2 * i);
    log_sum[i] = row < work.n ? lse[work.value_at(a, row)] * kLog2E : 0;
  }
  const float scale = a.scale * kLog2E, nothing = -std::numeric_limits<float>::infinity();
  Block dq[width / 8], pk[width / 8];
  clear(dq);
  clear(pk);
  over_tiles(work, load, [&](int place, int stage) {
    const bf16 *k = tiles + stage * 2 * tile_size, *v = k + tile_size;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks], dp[kBlocks];
    clear(p);
    clear(dp);
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll 2
      for (int step = 0; step < width / 16; ++step) {
        uint32_t query[4], d_row[4];
        queries.fragment(step, query);
        d_outputs.fragment(step, d_row);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          if (all || part < parts) {
            multiply_transposed<width>(query, k, part * 16, step * 16, p + part * 2);
            multiply_transposed<width>(d_row, v, part * 16, step * 16, dp + part * 2);
          }
      }
    });
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int r = 0; r < 4; ++r) p[b][r] = fmaf(p[b][r], scale, -log_sum[r / 2]);
    if (!work.sees_all(place))
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          if (!work.sees(work.row + lane.row(r), place + lane.column(b, r))) p[b][r] = nothing;
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
          multiply_two<width>(ds_factors, p_factors, k, part * 16, dq, pk);
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
  store_rows<width>(a, dq, factor, work.there(work.row), a.qkv_stride(), q + own,
                    dqkv + a.qkv_at(work.at.begin + work.row, 0, work.head));
}

// dK and dV: all is transposed, own rows are keys.
template <int width>
__global__ void __launch_bounds__(kMostBackwardWarps * 32, keys_blocks(width))
    backward_keys_kernel(Problem a, const bf16* d_output, const float* lse, const float* along,
                         bf16* dqkv) {
  using Tile = TensorCoreTile<width>;
  const Work work(a);
  if (work.block_is_idle()) return;
  const int tile_size = a.others * Tile::kStride, own_size = work.rows() * Tile::kStride;
  auto* k = shared_memory<bf16>();
  bf16 *v = k + own_size, *tiles = v + own_size;  // [stages, 2, others]: queries, output's gradient
  auto* values = reinterpret_cast<float*>(tiles + a.stages * 2 * tile_size);
  const Mask mask(a, work, values + a.stages * 2 * a.others);  // values [stages, 2, others]
  const auto load = [&](int place, int stage) {
    const int there = work.there(place), rows = work.loaded(place);
    bf16* tile = tiles + stage * 2 * tile_size;
    load_rows<width>(a, work.part(a, 0, place), a.qkv_stride(), there, rows, tile);
    load_rows<width>(a, d_output + work.output_at(a, place), a.output_stride(), there, rows,
                     tile + tile_size);
    const int i = static_cast<int>(threadIdx.x);
    if (i < rows) {
      const int64_t from = work.value_at(a, i < there ? place + i : place);
      float* value = values + stage * 2 * a.others + i;
      copy_4_async(value, lse + from, i < there);
      copy_4_async(value + a.others, along + from, i < there);
    }
  };
  for (int which = 1; which <= 2; ++which)
    load_rows<width>(a, work.part(a, which, work.first), a.qkv_stride(), work.there(work.first),
                     work.rows(), which == 1 ? k : v);
  load(work.others_first, 0);
  wait_for_copies();
  __syncthreads();

  const Lane lane;
  const int own = work.warp * kWarpRows * Tile::kStride;
  const OwnRows<width, false> keys(k + own), value_rows(v + own);
  const float scale = a.scale * kLog2E, nothing = -std::numeric_limits<float>::infinity();
  Block dk[width / 8], dv[width / 8];
  clear(dk);
  clear(dv);
  over_tiles(work, load, [&](int place, int stage) {
    const bf16 *q = tiles + stage * 2 * tile_size, *d_out = q + tile_size;
    const float *log_sums = values + stage * 2 * a.others, *sums = log_sums + a.others;
    const int parts = work.loaded(place) / 16;
    Block p[kBlocks], dp[kBlocks];
    clear(p);
    clear(dp);
    with_all_or_some(parts == kParts, [&]<bool all>() {
#pragma unroll 2
      for (int step = 0; step < width / 16; ++step) {
        uint32_t key[4], value[4];
        keys.fragment(step, key);
        value_rows.fragment(step, value);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          if (all || part < parts) {
            multiply_transposed<width>(key, q, part * 16, step * 16, p + part * 2);
            multiply_transposed<width>(value, d_out, part * 16, step * 16, dp + part * 2);
          }
      }
    });
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
      if (b < parts * 2)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          p[b][r] = fmaf(p[b][r], scale, -kLog2E * log_sums[lane.column(b, r)]);
    if (!work.sees_all(place))
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          if (!work.sees(work.row + lane.row(r), place + lane.column(b, r))) p[b][r] = nothing;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      if (part < parts) {
        if (mask.on) mask.draw(place + part * 16, work.row);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int b = part * 2 + i / 4, r = i % 4;
          const float probability = exp2_approximate(p[b][r]);
          const bool kept = !mask.on || mask.keeps(lane.column(i / 4, r), lane.row(r));
          const float d = kept ? dp[b][r] * a.dropout.factor : 0;
          p[b][r] = kept ? probability : 0;
          dp[b][r] = probability * (d - sums[lane.column(b, r)]);
        }
        uint32_t factors[4];
        factors_of(p + part * 2, factors);
        multiply<width>(factors, d_out, part * 16, dv);
        factors_of(dp + part * 2, factors);
        multiply<width>(factors, q, part * 16, dk);
      }
  });
  if (work.warp_is_idle()) return;
  const float key_factor[2] = {a.scale, a.scale};
  const float value_factor[2] = {a.dropout.factor, a.dropout.factor};
  const int64_t token = work.at.begin + work.row;
  store_rows<width>(a, dk, key_factor, work.there(work.row), a.qkv_stride(), k + own,
                    dqkv + a.qkv_at(token, 1, work.head));
  store_rows<width>(a, dv, value_factor, work.there(work.row), a.qkv_stride(), v + own,
                    dqkv + a.qkv_at(token, 2, work.head));
}

// Calls f.template operator()<width>() with the smallest width that holds the heads.
template <class F>
void for_width(int64_t size, F&& f) {
  if (size <= 32) return f.template operator()<32>();
  if (size <= 64) return f.template operator()<64>();
  f.template operator()<kWidestHead>();
}

Problem problem_of(const AttentionProblem<bf16>& problem, const TensorCoreLaunch& launch,
                   std::initializer_list<ConstTensorView> tensors) {
  bool by_16_bytes = problem.head_size % 8 == 0;
  for (const ConstTensorView& t : tensors)
    by_16_bytes = by_16_bytes && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  return {problem, launch.of_each, launch.others, launch.stages, by_16_bytes};
}

template <int width>
TensorCoreLaunch launch_for(AttentionPass pass, const PackedSequences& packed,
                            ConstTensorView qkv) {
  return tensor_core_launch<width>(pass, qkv.rows(), packed.sequences(), packed.longest,
                                   qkv.shape()[2]);
}

template <class... Arguments, class... Given>
void start(void (*kernel)(Problem, Arguments...), const TensorCoreLaunch& l, cudaStream_t stream,
           const Problem& problem, Given... arguments) {
  allow_shared_memory(kernel, l.bytes);
  kernel<<<static_cast<unsigned>(l.blocks), static_cast<unsigned>(l.warps * 32), l.bytes, stream>>>(
      problem, arguments...);
  check_launch();
}

}  // namespace

void attention_forward_bf16(const PackedSequences& packed, ConstTensorView qkv, double scale,
                            const DropoutSite& dropout, TensorView o, TensorView lse,
                            int64_t window, cudaStream_t stream) {
  const auto all = attention_problem<bf16>(packed, qkv, scale, dropout, window);
  for_width(qkv.shape()[3], [&]<int width>() {
    const TensorCoreLaunch l = launch_for<width>(AttentionPass::forward, packed, qkv);
    start(forward_kernel<width>, l, stream, problem_of(all, l, {qkv, o}), o.as<bf16>(),
          lse.as<float>());
  });
}

void attention_backward_bf16(const PackedSequences& packed, ConstTensorView d_output,
                             ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                             double scale, const DropoutSite& dropout, float* along,
                             TensorView dqkv, int64_t window, cudaStream_t stream) {
  const auto all = attention_problem<bf16>(packed, qkv, scale, dropout, window);
  for_width(qkv.shape()[3], [&]<int width>() {
    const TensorCoreLaunch queries = launch_for<width>(AttentionPass::queries, packed, qkv);
    start(backward_queries_kernel<width>, queries, stream,
          problem_of(all, queries, {qkv, d_output, output, dqkv}), d_output.as<bf16>(),
          output.as<bf16>(), lse.as<float>(), along, dqkv.as<bf16>());
    const TensorCoreLaunch keys = launch_for<width>(AttentionPass::keys, packed, qkv);
    start(backward_keys_kernel<width>, keys, stream, problem_of(all, keys, {qkv, d_output, dqkv}),
          d_output.as<bf16>(), lse.as<float>(), static_cast<const float*>(along), dqkv.as<bf16>());
  });
}

}  // namespace amur::cuda
