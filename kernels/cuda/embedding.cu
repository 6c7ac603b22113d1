// Rows of one id, tokens of one sequence and sequences at one position are added one after another,
// in the CPU's order: 32 rows are read at once and then added. A long sum goes over the warps of a
// block in turn: while one adds, the others have their rows on the way.
#include "kernels/embedding.h"

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/packs.cuh"
#include "kernels/positions_math.h"

namespace amur::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// A warp takes token after token. P: of the tables.
template <class T, class P, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    lookup_kernel(int64_t tokens, int64_t width, int64_t sequences, const int32_t* cu,
                  const int32_t* ids, const P* table, int64_t first_id, int64_t held,
                  const P* positions, T* y) {
  for (int64_t t = first_row(); t < tokens; t += row_stride()) {
    const int64_t id = ids[t] - first_id;
    const bool here = id >= 0 && id < held;
    const P* word = here ? table + id * width : nullptr;
    const P* place = nullptr;
    if (here && positions) place = positions + (t - cu[warp_sequence_of(t, sequences, cu)]) * width;
#pragma unroll 1
    for (int64_t j = lane_of_warp() * count; j < width; j += kLanes * count) {
      Pack<P, count> w{}, p{};
      if (word) w = load_pack<count>(word + j);
      if (place) p = load_pack<count>(place + j);
      Pack<T, count> out;
      for (int k = 0; k < count; ++k) {
        A v = static_cast<A>(w.v[k]);
        if (place) v += static_cast<A>(p.v[k]);
        out.v[k] = T(v);
      }
      store_pack(y + t * width + j, out);
    }
  }
}

// Columns of a lane of those that add rows: 4 bytes of bf16 or f32, so that 32 rows fit into
// registers.
template <class T>
constexpr int kColumnsOfLane = sizeof(T) == 2 ? 2 : 1;
// Rows of one id that are worth a block.
constexpr int64_t kManyRows = 128;

// The rows that the lanes of a warp name (-1: none), each lane with its own columns of all of them.
template <class T, int count>
class RowBatch {
 public:
  // `columns`: those of this lane in row 0.
  __device__ RowBatch(int32_t row, const T* columns, int64_t width)
      : named_(__ballot_sync(kAllLanes, row >= 0)) {
    const auto* bytes = reinterpret_cast<const char*>(columns);
    const auto row_bytes = static_cast<uint32_t>(width * static_cast<int64_t>(sizeof(T)));
    const uint32_t read = row < 0 ? 0 : static_cast<uint32_t>(row);
#pragma unroll
    for (int group = 0; group < kLanes; group += kGroup) {
      if (!any_of(group)) continue;
        // Without a condition, so that nothing waits for one before all are on the way.
#pragma unroll
      for (int i = group; i < group + kGroup; ++i) {
        const uint64_t at = uint64_t{__shfl_sync(kAllLanes, read, i)} * row_bytes;
        rows_[i] = load_words<count>(reinterpret_cast<const T*>(bytes + at));
      }
    }
  }
  __device__ bool empty() const {
    return named_ == 0;
  }

  // sum += scale * each row, in order of the lanes.
  template <class A>
  __device__ void add_to(A (&sum)[count], A scale) const {
#pragma unroll
    for (int group = 0; group < kLanes; group += kGroup) {
      if (!any_of(group)) continue;
#pragma unroll
      for (int i = group; i < group + kGroup; ++i) {
        const auto row = std::bit_cast<Pack<T, count>>(rows_[i]);
        if (named_ >> i & 1u)
          for (int k = 0; k < count; ++k) sum[k] += scale * static_cast<A>(row.v[k]);
      }
    }
  }

 private:
  static constexpr int kGroup = 4;  // skipped together
  __device__ bool any_of(int group) const {
    return (named_ >> group & ((1u << kGroup) - 1)) != 0;
  }

  unsigned named_;
  WordsOf<T, count> rows_[kLanes];
};

// sum += scale * row row_of(i) (-1: none) for i = 0 .. items-1, in this order, by a whole block;
// all its threads get the sum.
template <class T, int count, class RowOf, class A>
__device__ void add_in_turn(int64_t items, const RowOf& row_of, const T* columns, int64_t width,
                            A scale, A (&sum)[count]) {
  __shared__ A passed[kLanes * count];
  const int lane = lane_of_warp();
  const auto warp = static_cast<int>(threadIdx.x) / kLanes;
  const auto warps = static_cast<int>(blockDim.x) / kLanes;
  const auto pass = [&] {
    for (int k = 0; k < count; ++k) passed[k * kLanes + lane] = sum[k];
  };
  const auto take = [&] {
    for (int k = 0; k < count; ++k) sum[k] = passed[k * kLanes + lane];
  };
  if (warp == 0) pass();
  __syncthreads();
  for (int64_t first = 0; first < items; first += warps * kLanes) {
    const int64_t i = first + warp * kLanes + lane;
    const RowBatch<T, count> batch(i < items ? row_of(i) : -1, columns, width);
    for (int turn = 0; turn < warps; ++turn) {
      if (turn == warp && !batch.empty()) {
        take();
        batch.add_to(sum, scale);
        pass();
      }
      __syncthreads();
    }
  }
  take();
  __syncthreads();  // it may be written again
}

// The columns of this lane, and whether there are such; else those of lane 0, to be read in vain.
template <int count>
struct LaneColumns {
  int64_t first;
  bool exist;

  __device__ explicit LaneColumns(int64_t width)
      : first((int64_t{blockIdx.y} * kLanes + lane_of_warp()) * count), exist(first < width) {
    if (!exist) first = 0;
  }
};

template <int count, class A, class S>
__device__ void load_sum(const S* from, A (&sum)[count]) {
  const Pack<S, count> pack = load_pack<count>(from);
  for (int k = 0; k < count; ++k) sum[k] = static_cast<A>(pack.v[k]);
}
template <int count, class A, class S>
__device__ void store_sum(S* to, const A (&sum)[count]) {
  Pack<S, count> pack;
  for (int k = 0; k < count; ++k) pack.v[k] = S(sum[k]);
  store_pack(to, pack);
}

// A pass of a sort that keeps the order of equals. The key of token i is its row, `held` where the
// row is not here. A block takes the keys of one digit, (key >> shift) & mask, and writes them
// behind all of smaller ones; each of its warps goes over a part of the tokens, twice.
// `places`: the token of entry i, or null where it is i.
__global__ void __launch_bounds__(kMostOrderThreads)
    order_kernel(int32_t n, const int32_t* ids, const int32_t* places, uint32_t first_id,
                 uint32_t held, int shift, uint32_t mask, int32_t* keys, int32_t* order) {
  constexpr int kAhead = 8;  // keys of a lane on the way
  __shared__ int smaller_of[kLanes];
  __shared__ int own_of[kLanes];
  const int lane = lane_of_warp();
  const auto warp = static_cast<int>(threadIdx.x) / kLanes;
  const auto warps = static_cast<int>(blockDim.x) / kLanes;
  const int part = ((n - 1) / kLanes / warps + 1) * kLanes;
  const int begin = warp * part, end = min(begin + part, n);
  // f(entry, key, digit) for some entries, each lane its own; behind the end of the warp's part the
  // digit is one that no block takes.
  const auto some = [&]<bool inside>(int first, const auto& f) {
    const int32_t* at = ids + first + lane;
    uint32_t key[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const bool exists = inside || first + lane + a * kLanes < end;
      key[a] = exists ? min(static_cast<uint32_t>(at[a * kLanes]) - first_id, held) : 0;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int i = first + lane + a * kLanes;
      f(i, key[a], inside || i < end ? key[a] >> shift & mask : 0xffffffffu);
    }
  };
  const auto each = [&](const auto& f) {
    int first = begin;
    for (; first + kAhead * kLanes <= end; first += kAhead * kLanes)
      some.template operator()<true>(first, f);
    for (; first < end; first += kAhead * kLanes) some.template operator()<false>(first, f);
  };
  int smaller = 0, own = 0;
  each([&](int, uint32_t, uint32_t digit) {
    smaller += digit < blockIdx.x;
    own += digit == blockIdx.x;
  });
  smaller = warp_sum(smaller);
  own = warp_sum(own);
  if (lane == 0) {
    smaller_of[warp] = smaller;
    own_of[warp] = own;
  }
  __syncthreads();
  const bool counts = lane < warps;
  int to = warp_sum((counts ? smaller_of[lane] : 0) + (lane < warp ? own_of[lane] : 0));
  each([&](int i, uint32_t key, uint32_t digit) {
    const bool mine = digit == blockIdx.x;
    const unsigned all = __ballot_sync(kAllLanes, mine);
    if (all == 0) return;
    if (mine) {
      const int at = to + __popc(all & ((1u << lane) - 1));
      keys[at] = static_cast<int32_t>(key);
      order[at] = places ? places[i] : i;
    }
    to += __popc(all);
  });
}

// Entries of one key follow each other, in token order. A warp takes entry after entry: where it is
// the first one of its key, and there are not many, it adds the rows of all. S: of the sink.
template <class T, class S, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scatter_few_kernel(int64_t tokens, int64_t width, const int32_t* keys, const int32_t* order,
                       const T* dy, A sink_scale, int32_t held, S* sink) {
  const LaneColumns<count> columns(width);
  for (int64_t first = first_row(); first < tokens; first += row_stride()) {
    const int32_t key = keys[first], before = first > 0 ? keys[first - 1] : -1;
    const int64_t behind = first + kManyRows - 1;
    const int32_t later = behind < tokens ? keys[behind] : -1;
    if (key == held || key == before || key == later) continue;
    S* row = sink + key * width + columns.first;
    A sum[count];
    load_sum(row, sum);
    int last_key = key;
    for (int64_t i = first + lane_of_warp(); last_key == key; i += kLanes) {
      const int32_t near = i < tokens ? keys[i] : -1;
      const RowBatch<T, count> batch(near == key ? order[i] : -1, dy + columns.first, width);
      batch.add_to(sum, sink_scale);
      last_key = __shfl_sync(kAllLanes, near, kLanes - 1);
    }
    if (columns.exist) store_sum(row, sum);
  }
}

// A block takes every kManyRows-th entry: where it is the first one of these with its key, and
// there are many, it adds the rows of all.
template <class T, class S, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    scatter_many_kernel(int64_t tokens, int64_t width, const int32_t* keys, const int32_t* order,
                        const T* dy, A sink_scale, int32_t held, S* sink) {
  const LaneColumns<count> columns(width);
  const auto key_at = [=](int64_t k) { return int64_t{keys[k]}; };
  const int64_t stride = gridDim.x * kManyRows;
  for (int64_t middle = blockIdx.x * kManyRows; middle < tokens; middle += stride) {
    const int32_t key = keys[middle];
    const int64_t window = middle > 0 ? middle - kManyRows : 0;
    if (key == held || (middle > 0 && keys[window] == key)) continue;
    const int64_t first =
        middle > 0 ? window + 1 +
                         warp_last_not_after(key - 1, kManyRows,
                                             [=](int64_t k) { return key_at(window + k); })
                   : 0;
    const int64_t end = warp_last_not_after(key, tokens, key_at) + 1;
    if (end - first < kManyRows) continue;
    S* row = sink + key * width + columns.first;
    A sum[count];
    load_sum(row, sum);
    add_in_turn(
        end - first, [=](int64_t i) { return order[first + i]; }, dy + columns.first, width,
        sink_scale, sum);
    if (columns.exist && threadIdx.x < kLanes) store_sum(row, sum);
  }
}

// A block takes position after position.
template <class T, class S, int count, class A = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    position_scatter_kernel(int64_t longest, int64_t width, int64_t sequences, const int32_t* cu,
                            const T* dy, A sink_scale, S* sink) {
  const LaneColumns<count> columns(width);
  for (int64_t p = blockIdx.x; p < longest; p += gridDim.x) {
    S* row = sink + p * width + columns.first;
    A sum[count];
    load_sum(row, sum);
    const auto row_of = [=](int64_t s) {
      const int64_t t = cu[s] + p;
      return t < cu[s + 1] ? static_cast<int32_t>(t) : -1;
    };
    add_in_turn(sequences, row_of, dy + columns.first, width, sink_scale, sum);
    if (columns.exist && threadIdx.x < kLanes) store_sum(row, sum);
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads)
    sinusoid_kernel(int64_t positions, int64_t width, P* table) {
  for (int64_t i = first_item(); i < positions * width; i += item_stride()) {
    const int64_t j = i % width;
    const double angle = static_cast<double>(i / width) * sinusoidal_frequency(j, width);
    table[i] = static_cast<P>(j % 2 == 0 ? sin(angle) : cos(angle));
  }
}

template <class T, int count, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    add_positions_kernel(int64_t tokens, int64_t width, int64_t sequences, const int32_t* cu,
                         const P* table, T* y) {
  for (int64_t t = first_row(); t < tokens; t += row_stride()) {
    const P* place = table + (t - cu[warp_sequence_of(t, sequences, cu)]) * width;
#pragma unroll 1
    for (int64_t j = lane_of_warp() * count; j < width; j += kLanes * count) {
      Pack<T, count> v = load_pack<count>(y + t * width + j);
      const Pack<P, count> p = load_pack<count>(place + j);
      for (int k = 0; k < count; ++k) v.v[k] = T(static_cast<P>(v.v[k]) + p.v[k]);
      store_pack(y + t * width + j, v);
    }
  }
}

// A block takes sequence after sequence.
template <class T, int count, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(bool mean, int64_t sequences, int64_t width, const int32_t* cu, const T* x, P* h) {
  const LaneColumns<count> columns(width);
  for (int64_t s = blockIdx.x; s < sequences; s += gridDim.x) {
    const int32_t begin = cu[s], tokens = mean ? cu[s + 1] - begin : 1;
    P sum[count] = {};
    const auto row_of = [=](int64_t i) { return begin + static_cast<int32_t>(i); };
    add_in_turn(tokens, row_of, x + columns.first, width, P(1), sum);
    for (int k = 0; k < count; ++k) sum[k] /= static_cast<P>(tokens);
    if (columns.exist && threadIdx.x < kLanes) store_sum(h + s * width + columns.first, sum);
  }
}

// A warp takes tile after tile of a sequence, so that it divides once for some tokens.
constexpr int64_t kUnpoolTokens = 8;
template <class T, int count, class P = AccumulateType<T>>
__global__ void __launch_bounds__(kThreads)
    unpool_kernel(bool mean, int64_t tiles, int64_t sequences, int64_t width, const int32_t* cu,
                  const P* dh, T* dx) {
  for (int64_t tile = first_row(); tile < tiles; tile += row_stride()) {
    const SequenceTile of = warp_tile_of(tile, kUnpoolTokens, 0, sequences, cu);
    const int64_t end = min(of.first + kUnpoolTokens, of.length);
    const P length = static_cast<P>(mean ? of.length : 1);
#pragma unroll 1
    for (int64_t j = lane_of_warp() * count; j < width && !of.empty(); j += kLanes * count) {
      const Pack<P, count> d = load_pack<count>(dh + of.sequence * width + j);
      Pack<T, count> out;
      for (int k = 0; k < count; ++k) out.v[k] = T(d.v[k] / length);
      T* to = dx + (of.begin + of.first) * width + j;
      for (int64_t p = of.first; p < end; ++p, to += width)
        store_pack(to, mean || p == 0 ? out : Pack<T, count>{});
    }
  }
}

// The sum of a[j] b[j] over a row, by a warp, in double: tiny and huge rows keep their direction.
template <int count, class P>
__device__ double row_dot(int64_t width, const P* a, const P* b) {
  double sum = 0;
#pragma unroll 4
  for (int64_t j = lane_of_warp() * count; j < width; j += kLanes * count) {
    const Pack<P, count> u = load_pack<count>(a + j), v = load_pack<count>(b + j);
    for (int k = 0; k < count; ++k)
      sum += static_cast<double>(u.v[k]) * static_cast<double>(v.v[k]);
  }
  return warp_sum(sum);
}

// A warp takes row after row.
template <class P, int count>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(int64_t rows, int64_t width, const P* h, P* z, P* norm) {
  for (int64_t s = first_row(); s < rows; s += row_stride()) {
    const int64_t at = s * width;
    const P length = static_cast<P>(sqrt(row_dot<count>(width, h + at, h + at)));
    if (lane_of_warp() == 0) norm[s] = length;
#pragma unroll 1
    for (int64_t j = at + lane_of_warp() * count; j < at + width; j += kLanes * count) {
      Pack<P, count> v = load_pack<count>(h + j);
      for (int k = 0; k < count; ++k) v.v[k] = length > 0 ? v.v[k] / length : P(0);
      store_pack(z + j, v);
    }
  }
}

template <class P, int count>
__global__ void __launch_bounds__(kThreads)
    normalise_backward_kernel(int64_t rows, int64_t width, const P* dz, const P* z, const P* norm,
                              P* dh) {
  for (int64_t s = first_row(); s < rows; s += row_stride()) {
    const int64_t at = s * width;
    const P along = static_cast<P>(row_dot<count>(width, dz + at, z + at)), length = norm[s];
#pragma unroll 1
    for (int64_t j = at + lane_of_warp() * count; j < at + width; j += kLanes * count) {
      Pack<P, count> d = load_pack<count>(dz + j);
      const Pack<P, count> v = load_pack<count>(z + j);
      for (int k = 0; k < count; ++k)
        d.v[k] = length > 0 ? (d.v[k] - v.v[k] * along) / length : P(0);
      store_pack(dh + j, d);
    }
  }
}

// Calls f.template operator()<count>() with the columns of a lane for rows of T and S.
template <class T, class S, class F>
void with_columns(int64_t width, const F& f, const T* rows, const S* sums) {
  with_packs_of<kColumnsOfLane<T>>(width, f, rows, sums);
}

}  // namespace

void CudaBackend::embedding_forward(const PackedSequences& packed, ConstTensorView ids,
                                    ConstTensorView tokens, ConstTensorView positions, TensorView y,
                                    TableRows rows, Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t width = y.columns();
  dispatch_table(y.dtype(), tokens.dtype(), "embedding_forward", [&]<class T, class P>() {
    const P* table = tokens.as<P>();
    const P* places = pointer_of<P>(positions);
    const auto launch = [&]<int count>() {
      lookup_kernel<T, P, count><<<blocks_for_rows(y.rows()), kThreads, 0, s>>>(
          y.rows(), width, packed.sequences(), packed.cu_seqlens.as<int32_t>(), ids.as<int32_t>(),
          table, rows.first, tokens.rows(), places, y.as<T>());
    };
    with_packs<T>(width, launch, table, places, y.as<T>());
  });
  check_launch();
}

void CudaBackend::embedding_backward(const PackedSequences& packed, ConstTensorView ids,
                                     ConstTensorView dy, double sink_scale, TensorView tokens_sink,
                                     TensorView positions_sink, TableRows rows, Stream stream) {
  const cudaStream_t s = enter(dy.device(), stream);
  const int64_t tokens = dy.rows(), width = dy.columns();
  if (tokens_sink.defined()) {
    const Scratch scratch(static_cast<size_t>(4 * tokens) * sizeof(int32_t), dy.device(), stream);
    auto* half_keys = scratch.as<int32_t>();
    int32_t* half_order = half_keys + tokens;
    int32_t* keys = half_order + tokens;
    int32_t* order = keys + tokens;
    const auto n = static_cast<int32_t>(tokens), held = static_cast<int32_t>(tokens_sink.rows());
    const OrderLaunch l = order_launch(tokens, held);
    order_kernel<<<l.low_blocks, l.threads, 0, s>>>(n, ids.as<int32_t>(), nullptr, rows.first, held,
                                                    0, l.low_blocks - 1, half_keys, half_order);
    check_launch();
    order_kernel<<<l.high_blocks, l.threads, 0, s>>>(n, half_keys, half_order, 0, held, l.low_bits,
                                                     0xffffffffu, keys, order);
    check_launch();
    dispatch_table(dy.dtype(), tokens_sink.dtype(), "embedding_backward", [&]<class T, class S>() {
      const auto launch = [&]<int count>() {
        const unsigned across = blocks_across(width, count);
        const auto scale = static_cast<AccumulateType<T>>(sink_scale);
        const dim3 few(blocks_for_rows(tokens), across);
        scatter_few_kernel<T, S, count><<<few, kThreads, 0, s>>>(
            tokens, width, keys, order, dy.as<T>(), scale, held, tokens_sink.as<S>());
        check_launch();
        if (tokens < kManyRows) return;
        const dim3 many(blocks_for_each(tokens / kManyRows + 1), across);
        scatter_many_kernel<T, S, count><<<many, kThreads, 0, s>>>(
            tokens, width, keys, order, dy.as<T>(), scale, held, tokens_sink.as<S>());
        check_launch();
      };
      with_packs_of<kColumnsOfLane<T>>(width, launch, dy.as<T>(), tokens_sink.as<S>());
    });
  }
  if (positions_sink.defined()) {
    const DType type = positions_sink.dtype();
    dispatch_table(dy.dtype(), type, "embedding_backward", [&]<class T, class S>() {
      const auto launch = [&]<int count>() {
        const dim3 grid(blocks_for_each(packed.longest), blocks_across(width, count));
        const int threads = threads_for_sum(packed.sequences());
        position_scatter_kernel<T, S, count><<<grid, threads, 0, s>>>(
            packed.longest, width, packed.sequences(), packed.cu_seqlens.as<int32_t>(), dy.as<T>(),
            static_cast<AccumulateType<T>>(sink_scale), positions_sink.as<S>());
      };
      with_packs_of<kColumnsOfLane<T>>(width, launch, dy.as<T>(), positions_sink.as<S>());
    });
    check_launch();
  }
}

void CudaBackend::add_sinusoidal_positions(const PackedSequences& packed, TensorView y,
                                           Stream stream) {
  const cudaStream_t s = enter(y.device(), stream);
  const int64_t width = y.columns(), n = packed.longest * width;
  dispatch_float(y.dtype(), "add_sinusoidal_positions", [&]<class T>() {
    using P = AccumulateType<T>;
    const Scratch scratch(static_cast<size_t>(n) * sizeof(P), y.device(), stream);
    const auto* table = scratch.as<const P>();
    sinusoid_kernel<P><<<blocks_for(n), kThreads, 0, s>>>(packed.longest, width, scratch.as<P>());
    check_launch();
    const auto launch = [&]<int count>() {
      add_positions_kernel<T, count><<<blocks_for_rows(y.rows()), kThreads, 0, s>>>(
          y.rows(), width, packed.sequences(), packed.cu_seqlens.as<int32_t>(), table, y.as<T>());
    };
    with_packs<T>(width, launch, table, y.as<T>());
    check_launch();
  });
}

void CudaBackend::pooling_forward(PoolingKind kind, const PackedSequences& packed,
                                  ConstTensorView x, TensorView h, Stream stream) {
  const cudaStream_t s = enter(x.device(), stream);
  const bool mean = kind == PoolingKind::mean;
  dispatch_float(x.dtype(), "pooling_forward", [&]<class T>() {
    auto* out = h.as<AccumulateType<T>>();
    const auto launch = [&]<int count>() {
      const dim3 grid(blocks_for_each(h.rows()), blocks_across(h.columns(), count));
      pool_kernel<T, count><<<grid, threads_for_sum(mean ? packed.longest : 1), 0, s>>>(
          mean, h.rows(), h.columns(), packed.cu_seqlens.as<int32_t>(), x.as<T>(), out);
    };
    with_packs_of<kColumnsOfLane<T>>(h.columns(), launch, x.as<T>(), out);
  });
  check_launch();
}

void CudaBackend::pooling_backward(PoolingKind kind, const PackedSequences& packed,
                                   ConstTensorView dh, TensorView dx, Stream stream) {
  const cudaStream_t s = enter(dx.device(), stream);
  const int64_t tiles = tiles_for(dx.rows(), dh.rows(), kUnpoolTokens);
  dispatch_float(dx.dtype(), "pooling_backward", [&]<class T>() {
    const auto* in = dh.as<AccumulateType<T>>();
    const auto launch = [&]<int count>() {
      unpool_kernel<T, count><<<blocks_for_rows(tiles), kThreads, 0, s>>>(
          kind == PoolingKind::mean, tiles, dh.rows(), dh.columns(),
          packed.cu_seqlens.as<int32_t>(), in, dx.as<T>());
    };
    with_packs<T>(dh.columns(), launch, in, dx.as<T>());
  });
  check_launch();
}

void CudaBackend::normalise_forward(ConstTensorView h, TensorView z, TensorView norm,
                                    Stream stream) {
  const cudaStream_t s = enter(h.device(), stream);
  dispatch_f32_f64(h.dtype(), "normalise_forward", [&]<class P>() {
    const auto launch = [&]<int count>() {
      normalise_kernel<P, count><<<blocks_for_rows(h.rows()), kThreads, 0, s>>>(
          h.rows(), h.columns(), h.as<P>(), z.as<P>(), norm.as<P>());
    };
    with_packs<P>(h.columns(), launch, h.as<P>(), z.as<P>());
  });
  check_launch();
}

void CudaBackend::normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm,
                                     TensorView dh, Stream stream) {
  const cudaStream_t s = enter(dz.device(), stream);
  dispatch_f32_f64(dz.dtype(), "normalise_backward", [&]<class P>() {
    const auto launch = [&]<int count>() {
      normalise_backward_kernel<P, count><<<blocks_for_rows(dz.rows()), kThreads, 0, s>>>(
          dz.rows(), dz.columns(), dz.as<P>(), z.as<P>(), norm.as<P>(), dh.as<P>());
    };
    with_packs<P>(dz.columns(), launch, dz.as<P>(), z.as<P>(), dh.as<P>());
  });
  check_launch();
}

}  // namespace amur::cuda
