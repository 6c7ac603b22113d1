// Attention in f32 and f64, and the front of bf16's; rotary positions.
//
// A block takes a tile of one sequence and head: of queries for the output and for dQ, of keys for
// dK and dV. It goes over the tiles of the other side of the sequence in order and keeps its own
// result in registers, so no sum is shared between blocks and every one has a fixed order that does
// not depend on the other sequences of the chunk. Under a window it leaves out the tiles that none
// of its rows sees.
//
// Products with a tile are written as fused multiply-adds (the module is compiled without
// contraction).
#include <limits>
#include <utility>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cudnn_engine.cuh"
#include "kernels/cuda/packs.cuh"
#include "kernels/positions_math.h"

namespace amur::cuda {
namespace {

// Of a thread: its rows are own_first.. of the tile's own rows and other_first.. of the others, its
// columns are across, across + kAcross, ...
template <class Tile>
struct Place {
  int across = static_cast<int>(threadIdx.x) % kAcross;
  int own_first = static_cast<int>(threadIdx.x) / kAcross * Tile::kOwn;
  int other_first = across * Tile::kOther;
};

// tile [kRows, kWidth] = `rows` rows of head_size elements, `stride` apart; the rest is 0.
template <class Tile, class A>
__device__ void load_tile(const A* from, int64_t stride, int64_t rows, int head_size, A* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * Tile::kWidth; i += kTileThreads) {
    const int row = i / Tile::kWidth, column = i % Tile::kWidth;
    const bool there = row < rows && column < head_size;
    tile[row * Tile::kStride + column] = there ? from[row * stride + column] : A(0);
  }
}

// out = own rows times other rows
template <class Tile, class A>
__device__ void multiply(const A* own, const A* other, A (&out)[Tile::kOwn][Tile::kOther]) {
  const Place<Tile> place;
  for (auto& row : out)
    for (A& v : row) v = 0;
#pragma unroll 8
  for (int d = 0; d < Tile::kWidth; ++d) {
    A left[Tile::kOwn], right[Tile::kOther];
    for (int i = 0; i < Tile::kOwn; ++i) left[i] = own[(place.own_first + i) * Tile::kStride + d];
    for (int j = 0; j < Tile::kOther; ++j)
      right[j] = other[(place.other_first + j) * Tile::kStride + d];
    for (int i = 0; i < Tile::kOwn; ++i)
      for (int j = 0; j < Tile::kOther; ++j) out[i][j] = fma(left[i], right[j], out[i][j]);
  }
}

// sums += weights [own, other] times values [other, kWidth]
template <class Tile, class A>
__device__ void combine(const A* weights, const A* values, A (&sums)[Tile::kOwn][Tile::kColumns]) {
  const Place<Tile> place;
#pragma unroll 2
  for (int u = 0; u < Tile::kRows; ++u) {
    A weight[Tile::kOwn];
    for (int i = 0; i < Tile::kOwn; ++i)
      weight[i] = weights[(place.own_first + i) * Tile::kWeightStride + u];
    for (int c = 0; c < Tile::kColumns; ++c) {
      const A value = values[u * Tile::kStride + place.across + c * kAcross];
      for (int i = 0; i < Tile::kOwn; ++i) sums[i][c] = fma(weight[i], value, sums[i][c]);
    }
  }
}

// to[row, :] = sums[row, :] / divisor[row] for the own rows before `rows`, `stride` apart
template <class Tile, class A>
__device__ void store(const A (&sums)[Tile::kOwn][Tile::kColumns], const A (&divisor)[Tile::kOwn],
                      int64_t stride, int64_t rows, int head_size, A* to) {
  const Place<Tile> place;
#pragma unroll
  for (int i = 0; i < Tile::kOwn; ++i) {
#pragma unroll
    for (int c = 0; c < Tile::kColumns; ++c) {
      const int row = place.own_first + i, column = place.across + c * kAcross;
      if (row < rows && column < head_size) to[row * stride + column] = sums[i][c] / divisor[i];
    }
  }
}

// Over the threads that share the own rows; each of them gets it.
template <class A>
__device__ A sum_across(A value) {
  for (int offset = kAcross / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
template <class A>
__device__ A max_across(A value) {
  for (int offset = kAcross / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// The dropout of one sequence and head.
template <class A>
struct Mask {
  bool on;
  uint32_t threshold;
  A factor;
  uint64_t key, first_element;

  __device__ Mask(const AttentionDropout<A>& dropout, int64_t sequence, int64_t head)
      : on(dropout.keys != nullptr), threshold(dropout.threshold), factor(dropout.factor) {
    key = dropout.key(sequence);
    first_element = dropout.first_element(head);
  }

  // values[j] *= mask of (query, first_key + j); first_key is a multiple of `count`
  template <int count>
  __device__ void apply(int64_t query, int64_t first_key, A (&values)[count]) const {
    static_assert(4 % count == 0);
    if (!on) return;
    const uint64_t element = first_element + static_cast<uint64_t>(first_key);
    const Philox p = philox(key, static_cast<uint64_t>(query), element / 8);
    const uint64_t lanes =
        element % 8 < 4 ? p.v[0] | (uint64_t{p.v[1]} << 32) : p.v[2] | (uint64_t{p.v[3]} << 32);
    for (int j = 0; j < count; ++j) {
      const auto lane = static_cast<uint32_t>(lanes >> (16 * (element % 4 + j))) & 0xffffu;
      values[j] = lane < threshold ? A(0) : values[j] * factor;
    }
  }
};

// A tile of the sequence's rows from `first` on: of a part of qkv, or of a tensor like the output.
template <class Tile, class A>
__device__ void load_part(const AttentionProblem<A>& a, const SequenceTile& at, int64_t head,
                          int part, int64_t first, A* tile) {
  load_tile<Tile>(a.qkv + a.qkv_at(at.begin + first, part, head), a.qkv_stride(), at.length - first,
                  a.head_size, tile);
}
template <class Tile, class A>
__device__ void load_output(const AttentionProblem<A>& a, const SequenceTile& at, int64_t head,
                            const A* output, int64_t first, A* tile) {
  load_tile<Tile>(output + a.output_at(at.begin + first, head), a.output_stride(),
                  at.length - first, a.head_size, tile);
}

// Softmax with a running maximum: the sums so far shrink where it grows.
template <class A, int width>
__global__ void __launch_bounds__(kTileThreads)
    forward_kernel(AttentionProblem<A> a, A* output, A* lse) {
  using Tile = AttentionTile<A, width>;
  const SequenceTile at = tile_of(blockIdx.x, Tile::kRows, a.sequences, a.cu);
  if (at.empty()) return;
  const int64_t head = blockIdx.y, n = at.length;
  A* q = shared_memory<A>();
  A *k = q + Tile::kTile, *v = k + Tile::kTile, *weights = v + Tile::kTile;
  const Place<Tile> place;
  const Mask<A> mask(a.dropout, at.sequence, head);
  const A nothing = -std::numeric_limits<A>::infinity();

  load_part<Tile>(a, at, head, 0, at.first, q);
  A most[Tile::kOwn], total[Tile::kOwn], sums[Tile::kOwn][Tile::kColumns];
  for (int i = 0; i < Tile::kOwn; ++i) {
    most[i] = nothing;
    total[i] = 0;
    for (A& x : sums[i]) x = 0;
  }
  const OtherPlaces others(at.first, Tile::kRows, n, a.window, Tile::kRows);
  for (int64_t first = others.first; first < others.end; first += Tile::kRows) {
    __syncthreads();  // the tiles before have been read
    load_part<Tile>(a, at, head, 1, first, k);
    load_part<Tile>(a, at, head, 2, first, v);
    __syncthreads();
    A p[Tile::kOwn][Tile::kOther];
    multiply<Tile>(q, k, p);
    for (int i = 0; i < Tile::kOwn; ++i) {
      const int64_t row = at.first + place.own_first + i;
      A top = most[i];
      for (int j = 0; j < Tile::kOther; ++j) {
        const int64_t key = first + place.other_first + j;
        p[i][j] = key < n && a.sees(row, key) ? a.scale * p[i][j] : nothing;
        top = p[i][j] > top ? p[i][j] : top;
      }
      top = max_across(top);
      const A shift = top == nothing ? A(0) : top;  // nothing: the row has seen no key yet
      const A shrink = exp(most[i] - shift);
      most[i] = top;
      A part = 0;
      for (int j = 0; j < Tile::kOther; ++j) {
        p[i][j] = exp(p[i][j] - shift);
        part += p[i][j];
      }
      total[i] = total[i] * shrink + sum_across(part);
      for (A& x : sums[i]) x *= shrink;
      mask.apply(at.first + place.own_first + i, first + place.other_first, p[i]);
      for (int j = 0; j < Tile::kOther; ++j)
        weights[(place.own_first + i) * Tile::kWeightStride + place.other_first + j] = p[i][j];
    }
    __syncwarp();  // the weights of a row are written and read by one warp
    combine<Tile>(weights, v, sums);
  }
  store<Tile>(sums, total, a.output_stride(), n - at.first, a.head_size,
              output + a.output_at(at.begin + at.first, head));
  for (int i = 0; i < Tile::kOwn; ++i) {
    const int64_t row = at.first + place.own_first + i;
    if (place.across == 0 && row < n)
      lse[(at.begin + row) * a.heads + head] = most[i] + log(total[i]);
  }
}

// With P the probabilities, M the mask over 1-p, and dP = (dO V^T) M:
//   dV = (P M)^T dO,  dS = P (dP - rowsum(P dP)),  dQ = scale dS K,  dK = scale dS^T Q.
//
// dQ and the row sums: a first sweep over the keys for the sums, a second one backwards, which
// begins with the tile that the first one ended with.
template <class A, int width>
__global__ void __launch_bounds__(kTileThreads)
    backward_queries_kernel(AttentionProblem<A> a, const A* d_output, const A* lse, A* along,
                            A* dqkv) {
  using Tile = AttentionTile<A, width>;
  const SequenceTile at = tile_of(blockIdx.x, Tile::kRows, a.sequences, a.cu);
  if (at.empty()) return;
  const int64_t head = blockIdx.y, n = at.length;
  A* q = shared_memory<A>();
  A *d_out = q + Tile::kTile, *k = d_out + Tile::kTile, *v = k + Tile::kTile;
  A* weights = v + Tile::kTile;
  const Place<Tile> place;
  const Mask<A> mask(a.dropout, at.sequence, head);

  load_part<Tile>(a, at, head, 0, at.first, q);
  load_output<Tile>(a, at, head, d_output, at.first, d_out);
  A log_sum[Tile::kOwn], sum[Tile::kOwn], dq[Tile::kOwn][Tile::kColumns];
  for (int i = 0; i < Tile::kOwn; ++i) {
    const int64_t row = at.first + place.own_first + i;
    log_sum[i] = row < n ? lse[(at.begin + row) * a.heads + head] : A(0);
    sum[i] = 0;
    for (A& x : dq[i]) x = 0;
  }
  A p[Tile::kOwn][Tile::kOther], dp[Tile::kOwn][Tile::kOther];
  const OtherPlaces others(at.first, Tile::kRows, n, a.window, Tile::kRows);
  const int64_t tiles = (others.end - others.first + Tile::kRows - 1) / Tile::kRows;
  for (int64_t step = 0; step < 2 * tiles; ++step) {
    const int64_t first = others.first + (step < tiles ? step : 2 * tiles - 1 - step) * Tile::kRows;
    if (step != tiles) {
      __syncthreads();  // the tiles before have been read
      load_part<Tile>(a, at, head, 1, first, k);
      load_part<Tile>(a, at, head, 2, first, v);
      __syncthreads();
      multiply<Tile>(q, k, p);
      multiply<Tile>(d_out, v, dp);
      for (int i = 0; i < Tile::kOwn; ++i) {
        const int64_t row = at.first + place.own_first + i;
        for (int j = 0; j < Tile::kOther; ++j) {
          const int64_t key = first + place.other_first + j;
          p[i][j] = key < n && a.sees(row, key) ? exp(a.scale * p[i][j] - log_sum[i]) : A(0);
        }
        mask.apply(row, first + place.other_first, dp[i]);
      }
    }
    if (step < tiles) {
      for (int i = 0; i < Tile::kOwn; ++i)
        for (int j = 0; j < Tile::kOther; ++j) sum[i] += p[i][j] * dp[i][j];
    }
    if (step == tiles - 1) {
      for (int i = 0; i < Tile::kOwn; ++i) {
        sum[i] = sum_across(sum[i]);
        const int64_t row = at.first + place.own_first + i;
        if (place.across == 0 && row < n) along[(at.begin + row) * a.heads + head] = sum[i];
      }
    }
    if (step >= tiles) {
      for (int i = 0; i < Tile::kOwn; ++i)
        for (int j = 0; j < Tile::kOther; ++j)
          weights[(place.own_first + i) * Tile::kWeightStride + place.other_first + j] =
              a.scale * p[i][j] * (dp[i][j] - sum[i]);
      __syncwarp();
      combine<Tile>(weights, k, dq);
      __syncwarp();  // they may be written again
    }
  }
  A one[Tile::kOwn];
  for (A& x : one) x = 1;
  store<Tile>(dq, one, a.qkv_stride(), n - at.first, a.head_size,
              dqkv + a.qkv_at(at.begin + at.first, 0, head));
}

template <class A, int width>
__global__ void __launch_bounds__(kTileThreads)
    backward_keys_kernel(AttentionProblem<A> a, const A* d_output, const A* lse, const A* along,
                         A* dqkv) {
  using Tile = AttentionTile<A, width>;
  const SequenceTile at = tile_of(blockIdx.x, Tile::kRows, a.sequences, a.cu);
  if (at.empty()) return;
  const int64_t head = blockIdx.y, n = at.length;
  A* k = shared_memory<A>();
  A *v = k + Tile::kTile, *q = v + Tile::kTile, *d_out = q + Tile::kTile;
  A *p_weights = d_out + Tile::kTile, *s_weights = p_weights + Tile::kWeights;
  const Place<Tile> place;
  const Mask<A> mask(a.dropout, at.sequence, head);

  load_part<Tile>(a, at, head, 1, at.first, k);
  load_part<Tile>(a, at, head, 2, at.first, v);
  A dk[Tile::kOwn][Tile::kColumns], dv[Tile::kOwn][Tile::kColumns];
  for (int i = 0; i < Tile::kOwn; ++i)
    for (int c = 0; c < Tile::kColumns; ++c) dk[i][c] = dv[i][c] = 0;
  const OtherPlaces others(at.first, Tile::kRows, n, a.window, Tile::kRows);
  for (int64_t first = others.first; first < others.end; first += Tile::kRows) {
    __syncthreads();  // the tiles before have been read
    load_part<Tile>(a, at, head, 0, first, q);
    load_output<Tile>(a, at, head, d_output, first, d_out);
    __syncthreads();
    A s[Tile::kOwn][Tile::kOther], dp[Tile::kOwn][Tile::kOther];
    multiply<Tile>(k, q, s);
    multiply<Tile>(v, d_out, dp);
    for (int j = 0; j < Tile::kOther; ++j) {
      const int64_t row = first + place.other_first + j;  // the query
      const bool there = row < n;
      const A log_sum = there ? lse[(at.begin + row) * a.heads + head] : A(0);
      const A sum = there ? along[(at.begin + row) * a.heads + head] : A(0);
      A masked[Tile::kOwn];
      for (A& x : masked) x = 1;
      mask.apply(row, at.first + place.own_first, masked);
      for (int i = 0; i < Tile::kOwn; ++i) {
        const bool seen = there && a.sees(row, at.first + place.own_first + i);
        const A p = seen ? exp(a.scale * s[i][j] - log_sum) : A(0);
        const int to = (place.own_first + i) * Tile::kWeightStride + place.other_first + j;
        p_weights[to] = p * masked[i];
        s_weights[to] = a.scale * p * (dp[i][j] * masked[i] - sum);
      }
    }
    __syncwarp();  // the weights of a row are written and read by one warp
    combine<Tile>(p_weights, d_out, dv);
    combine<Tile>(s_weights, q, dk);
  }
  A one[Tile::kOwn];
  for (A& x : one) x = 1;
  store<Tile>(dk, one, a.qkv_stride(), n - at.first, a.head_size,
              dqkv + a.qkv_at(at.begin + at.first, 1, head));
  store<Tile>(dv, one, a.qkv_stride(), n - at.first, a.head_size,
              dqkv + a.qkv_at(at.begin + at.first, 2, head));
}

template <class P>
__global__ void __launch_bounds__(kThreads)
    rotary_table_kernel(int64_t positions, int64_t half, double base, int64_t period, bool inverse,
                        P* cosines, P* sines) {
  for (int64_t i = first_item(); i < positions * half; i += item_stride()) {
    const double frequency = rotary_frequency(base, i % half, period);
    const double angle = static_cast<double>(i / half) * (inverse ? -frequency : frequency);
    cosines[i] = static_cast<P>(cos(angle));
    sines[i] = static_cast<P>(sin(angle));
  }
}

// A warp takes a run of tokens, of each its 2 * heads queries and keys, packs of their halves.
template <int pack, class T, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(int64_t tokens, int heads, int half, int64_t sequences, const int32_t* cu,
                  const P* cosines, const P* sines, T* qkv) {
  const RowRun run = run_of_warp(tokens);
  if (run.first >= run.end) return;
  int64_t sequence = warp_sequence_of(run.first, sequences, cu);
  for (int64_t t = run.first; t < run.end; ++t) {
    while (t >= cu[sequence + 1]) ++sequence;
    const int64_t angles = (t - cu[sequence]) * half;
    T* token = qkv + t * 6 * heads * half;
    for (int i = lane_of_warp() * pack; i < 2 * heads * half; i += kLanes * pack) {
      const int j = i % half;
      T* left = token + (i - j) * 2 + j;
      P x[pack], y[pack], c[pack], d[pack], turned[pack];
      widen(load_pack<pack>(left), x);
      widen(load_pack<pack>(left + half), y);
      widen(load_pack<pack>(cosines + angles + j), c);
      widen(load_pack<pack>(sines + angles + j), d);
#pragma unroll
      for (int e = 0; e < pack; ++e) turned[e] = x[e] * c[e] - y[e] * d[e];
      store_pack(left, rounded<T>(turned));
#pragma unroll
      for (int e = 0; e < pack; ++e) turned[e] = y[e] * c[e] + x[e] * d[e];
      store_pack(left + half, rounded<T>(turned));
    }
  }
}

template <class Tile>
dim3 grid_for(const PackedSequences& packed, ConstTensorView qkv) {
  return dim3(static_cast<unsigned>(tiles_for(qkv.rows(), packed.sequences(), Tile::kRows)),
              static_cast<unsigned>(qkv.shape()[2]));
}

void require_narrow(const char* op, ConstTensorView qkv) {
  const int64_t size = qkv.shape()[3];
  if (size > kWidestHead)
    throw UsageError("{}: heads of {} elements, but a GPU takes up to {}; use --device cpu", op,
                     size, kWidestHead);
}

// Calls f.template operator()<A, width>() with the smallest width that holds the heads. Doubles,
// which are for proofs, have one width.
template <class F>
void dispatch(ConstTensorView qkv, const char* op, F&& f) {
  const int64_t size = qkv.shape()[3];
  dispatch_f32_f64(qkv.dtype(), op, [&]<class A>() {
    if constexpr (!std::is_same_v<A, double>) {
      if (size <= 32) return f.template operator()<A, 32>();
      if (size <= 64) return f.template operator()<A, 64>();
    }
    f.template operator()<A, kWidestHead>();
  });
}

}  // namespace

AttentionEngines CudaBackend::use_attention_engines(const AttentionEngines& engines) {
  return std::exchange(attention_engines_, engines);
}

std::string CudaBackend::other_attention_library() const {
  return find_cudnn().usable() ? find_cudnn().text : "";
}

std::string CudaBackend::cudnn_problem(const AttentionKind& kind, int64_t sequences,
                                       Device device) {
  enter(device, {});
  std::string problem;
  cudnn_engine().plan(device, kind.direction,
                      {sequences_bucket(sequences), kind.longest, kind.heads, kind.head_size},
                      &problem);
  return problem;
}

bool CudaBackend::wants_cudnn(AttentionDirection direction, const PackedSequences& packed,
                              ConstTensorView qkv, const DropoutSite& dropout,
                              int64_t window) const {
  if (qkv.dtype() != DType::bf16 || dropout.probability > 0 || window < packed.longest)
    return false;
  return attention_engines_.of({direction, qkv.shape()[2], qkv.shape()[3],
                                length_bucket(packed.longest)}) == AttentionEngine::cudnn;
}

void CudaBackend::attention_forward(const PackedSequences& packed, ConstTensorView qkv,
                                    double scale, const DropoutSite& dropout, TensorView o,
                                    TensorView lse, int64_t window, Stream stream) {
  const char* op = "attention_forward";
  const cudaStream_t s = enter(qkv.device(), stream);
  if (wants_cudnn(AttentionDirection::forward, packed, qkv, dropout, window) &&
      cudnn_engine().forward(packed, qkv, scale, o, lse, stream))
    return;
  require_narrow(op, qkv);
  if (qkv.dtype() == DType::bf16)
    return attention_forward_bf16(packed, qkv, scale, dropout, o, lse, window, s);
  dispatch(qkv, op, [&]<class A, int width>() {
    using Tile = AttentionTile<A, width>;
    constexpr size_t bytes = Tile::kForwardBytes;
    allow_shared_memory(forward_kernel<A, width>, bytes);
    forward_kernel<A, width><<<grid_for<Tile>(packed, qkv), kTileThreads, bytes, s>>>(
        attention_problem<A>(packed, qkv, scale, dropout, window), o.as<A>(), lse.as<A>());
  });
  check_launch();
}

void CudaBackend::attention_backward(const PackedSequences& packed, ConstTensorView d_output,
                                     ConstTensorView qkv, ConstTensorView output,
                                     ConstTensorView lse, double scale, const DropoutSite& dropout,
                                     TensorView dqkv, int64_t window, Stream stream) {
  const char* op = "attention_backward";
  const cudaStream_t s = enter(qkv.device(), stream);
  if (wants_cudnn(AttentionDirection::backward, packed, qkv, dropout, window) &&
      cudnn_engine().backward(packed, d_output, qkv, output, lse, scale, dqkv, stream))
    return;
  require_narrow(op, qkv);
  if (qkv.dtype() == DType::bf16)
    return attention_backward_bf16(packed, d_output, qkv, output, lse, scale, dropout, dqkv, window,
                                   stream);
  const Scratch along(lse.bytes(), qkv.device(), stream);
  dispatch(qkv, op, [&]<class A, int width>() {
    using Tile = AttentionTile<A, width>;
    const dim3 grid = grid_for<Tile>(packed, qkv);
    const auto problem = attention_problem<A>(packed, qkv, scale, dropout, window);
    constexpr size_t query_bytes = Tile::kQueriesBytes, key_bytes = Tile::kKeysBytes;
    allow_shared_memory(backward_queries_kernel<A, width>, query_bytes);
    allow_shared_memory(backward_keys_kernel<A, width>, key_bytes);
    backward_queries_kernel<A, width><<<grid, kTileThreads, query_bytes, s>>>(
        problem, d_output.as<A>(), lse.as<A>(), along.as<A>(), dqkv.as<A>());
    check_launch();
    backward_keys_kernel<A, width><<<grid, kTileThreads, key_bytes, s>>>(
        problem, d_output.as<A>(), lse.as<A>(), along.as<const A>(), dqkv.as<A>());
    check_launch();
  });
}

void CudaBackend::rotary(const PackedSequences& packed, double base, int64_t period, bool inverse,
                         TensorView qkv, Stream stream) {
  const cudaStream_t s = enter(qkv.device(), stream);
  const int64_t heads = qkv.shape()[2], half = qkv.shape()[3] / 2, n = packed.longest * half;
  dispatch_float(qkv.dtype(), "rotary", [&]<class T>() {
    using P = AccumulateType<T>;
    const Scratch scratch(static_cast<size_t>(2 * n) * sizeof(P), qkv.device(), stream);
    auto* cosines = scratch.as<P>();
    rotary_table_kernel<P><<<blocks_for(n), kThreads, 0, s>>>(packed.longest, half, base, period,
                                                              inverse, cosines, cosines + n);
    check_launch();
    const auto rotate = [&]<int pack>() {
      rotate_kernel<pack, T><<<blocks_for_runs(qkv.rows(), kRowsOfBlock), kThreads, 0, s>>>(
          qkv.rows(), static_cast<int>(heads), static_cast<int>(half), packed.sequences(),
          packed.cu_seqlens.as<int32_t>(), cosines, cosines + n, qkv.as<T>());
      check_launch();
    };
    with_packs<T>(half, rotate, qkv.as<T>(), cosines, cosines + n);
  });
}

}  // namespace amur::cuda
