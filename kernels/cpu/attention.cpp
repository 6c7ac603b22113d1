// Compiled once per instruction set.
//
// One (sequence, head) at a time, copied to small padded tiles of the accumulation type: short
// texts fit in the L1 cache. Scores are vectors over keys (keys and values lie transposed for
// that), the products with values, keys and queries are vectors over the head's dimensions. Queries
// go in groups of four, which share the loads. Padded keys get probability 0, padded queries are
// not written.
//
// Under a window a group goes over the keys that one of its queries sees, and those that a query
// does not see get probability 0 there: what a query gives does not depend on its group.
#include "kernels/cpu/attention.h"

#include <vector>

#include "kernels/cpu/dropout_simd.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_math.h"

namespace amur::cpu {
namespace AMUR_ISA {

constexpr int kGroup = 4;  // queries

constexpr int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

constexpr int64_t round_down(int64_t n, int64_t step) {
  return n / step * step;
}

// Keys [first, end) of a sequence.
struct Keys {
  int64_t first, end;
};
// Of n, those that a query sees.
inline Keys keys_of(int64_t query, int64_t n, int64_t window) {
  return {std::max<int64_t>(0, query - window), std::min(n, query + window + 1)};
}
// Those that `count` queries from `query` on see, from a place on where vectors and the blocks of
// dropout lanes begin. Whole vectors are computed, so rows are read up to the end of the last one.
template <class A>
Keys keys_of_group(int64_t query, int64_t count, int64_t n, int64_t window) {
  return {round_down(keys_of(query, n, window).first, std::max(kLanes<A>, 8)),
          keys_of(query + count - 1, n, window).end};
}
// Puts minus infinity in the places of a group's row that one of its queries does not see.
template <class A>
void hide(Keys seen, Keys group, A* row) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  std::fill(row + group.first, row + seen.first, kNothing);
  std::fill(row + seen.end, row + round_up(group.end, kLanes<A>), kNothing);
}

// Scratch of one thread, for sequences of up to `longest` tokens.
template <class A>
class Tiles {
 public:
  Tiles(int64_t longest, int64_t head_size, int count)
      : width_(round_up(head_size, kLanes<A>)),
        room_(round_up(longest, std::max<int64_t>(kLanes<A>, kGroup))),
        tile_(room_ * width_),
        memory_(static_cast<size_t>(count * tile_ + 2 * kGroup * room_)),
        lanes_(static_cast<size_t>(dropout_room(longest) + kLanes<A>)) {}

  int64_t width() const { return width_; }
  A* tile(int i) { return memory_.data() + i * tile_; }
  // Two blocks [kGroup, room].
  A* rows(int i) {
    return tile(0) + (static_cast<int64_t>(memory_.size()) - (2 - i) * kGroup * room_);
  }
  uint16_t* lanes() { return lanes_.data(); }

 private:
  int64_t width_, room_, tile_;
  std::vector<A> memory_;
  std::vector<uint16_t> lanes_;
};

// tile [rows, width] = n rows of head_size elements, `stride` apart; the padding is 0.
template <class T, class A>
void gather(const T* from, int64_t stride, int64_t n, int64_t rows, int64_t head_size,
            int64_t width, A* tile) {
  for (int64_t t = 0; t < n; ++t)
    for_each_vector<A>(head_size, [&](auto at) {
      store(tile + t * width + at.at, at.load_from(from + t * stride));
    });
  std::memset(tile + n * width, 0, static_cast<size_t>((rows - n) * width) * sizeof(A));
}

// to [head_size, padded] = transposed tile; columns n..padded-1 are 0.
template <class A>
void transpose(const A* tile, int64_t n, int64_t padded, int64_t head_size, int64_t width, A* to) {
  for (int64_t j = 0; j < head_size; ++j) {
    for (int64_t t = 0; t < n; ++t) to[j * padded + t] = tile[t * width + j];
    for (int64_t t = n; t < padded; ++t) to[j * padded + t] = 0;
  }
}

// rows [kGroup, padded] = q [kGroup, width] times keys [head_size, padded], those of `group`.
template <class A>
void dot_rows(const A* q, const A* keys, Keys group, int64_t head_size, int64_t width,
              int64_t padded, A* rows) {
  for (int64_t u = group.first; u < group.end; u += kLanes<A>) {
    Vec<A> sum[kGroup] = {};
    for (int64_t j = 0; j < head_size; ++j) {
      const Vec<A> key = load(keys + j * padded + u);
      for (int i = 0; i < kGroup; ++i) sum[i] += q[i * width + j] * key;
    }
    for (int i = 0; i < kGroup; ++i) store(rows + i * padded + u, sum[i]);
  }
}

// out [kGroup, width] = weights [kGroup, padded] times values [n, width], those of `group`.
template <class A>
void combine_rows(const A* weights, const A* values, Keys group, int64_t width, int64_t padded,
                  A* out) {
  for (int64_t c = 0; c < width; c += kLanes<A>) {
    Vec<A> sum[kGroup] = {};
    for (int64_t u = group.first; u < group.end; ++u) {
      const Vec<A> value = load(values + u * width + c);
      for (int i = 0; i < kGroup; ++i) sum[i] += weights[i * padded + u] * value;
    }
    for (int i = 0; i < kGroup; ++i) store(out + i * width + c, sum[i]);
  }
}

// sums [n, width] += weights [kGroup, padded]^T times rows [kGroup, width], at the keys of `group`.
template <class A>
void scatter_rows(const A* weights, const A* rows, Keys group, int64_t width, int64_t padded,
                  A* sums) {
  for (int64_t c = 0; c < width; c += kLanes<A>) {
    Vec<A> row[kGroup];
    for (int i = 0; i < kGroup; ++i) row[i] = load(rows + i * width + c);
    for (int64_t u = group.first; u < group.end; ++u) {
      Vec<A> sum = load(sums + u * width + c);
      for (int i = 0; i < kGroup; ++i) sum += weights[i * padded + u] * row[i];
      store(sums + u * width + c, sum);
    }
  }
}

// The dropout of one sequence.
template <class A>
struct Mask {
  bool on = false;
  uint64_t key = 0, first_head = 0;
  uint32_t threshold = 0;
  A factor = 1;

  template <class T>
  Mask(const AttentionProblem<T>& a, int64_t sequence) {
    if (!a.dropout_keys) return;
    on = true;
    first_head = a.dropout.first_head;
    key = dropout_key(a.dropout_keys[sequence], a.dropout.layer, a.dropout.site);
    threshold = dropout_threshold(a.dropout.probability);
    factor = static_cast<A>(1 / (1 - a.dropout.probability));
  }
  // lanes[i]: of key group.first + i.
  void draw(int64_t query, int64_t head, Keys group, uint16_t* lanes) const {
    dropout_lanes(key, static_cast<uint64_t>(query),
                  (first_head + static_cast<uint64_t>(head)) * (65536 / 8) +
                      static_cast<uint64_t>(group.first / 8),
                  group.end - group.first, lanes);
  }
  Vec<A> apply(const Vec<A>& x, const uint16_t* lanes) const {
    return dropped<A>(x, lanes, threshold, factor);
  }
};

// softmax(scale * row) over the keys that are seen, in place; 0 at the others of the group. Returns
// the log-sum-exp.
template <class A>
A softmax_row(A scale, Keys seen, Keys group, A* row) {
  hide(seen, group, row);
  Vec<A> most = broadcast(-std::numeric_limits<A>::infinity());
  for (int64_t u = group.first; u < group.end; u += kLanes<A>) {
    const Vec<A> v = scale * load(row + u);
    store(row + u, v);
    most = v > most ? v : most;
  }
  hide(seen, group, row);
  const A top = max_lanes<A>(most);
  Vec<A> sum{};
  for (int64_t u = group.first; u < group.end; u += kLanes<A>) {
    const Vec<A> e = exp_of(load(row + u) - top);
    store(row + u, e);
    sum += e;
  }
  const A total = sum_lanes<A>(sum);
  for (int64_t u = group.first; u < group.end; u += kLanes<A>)
    store(row + u, load(row + u) / total);
  return top + std::log(total);
}

template <class T, class A>
void forward_head(const AttentionProblem<T>& a, int64_t s, int64_t head, const Mask<A>& mask,
                  Tiles<A>& tiles, T* output, A* lse) {
  const int64_t begin = a.cu_seqlens[s], n = a.cu_seqlens[s + 1] - begin;
  const int64_t size = a.head_size, width = tiles.width(), stride = 3 * a.heads * size;
  const int64_t padded = round_up(n, kLanes<A>), queries = round_up(n, kGroup);
  const T* from = a.qkv + begin * stride + head * size;
  A *q = tiles.tile(0), *k = tiles.tile(1), *v = tiles.tile(2), *keys = tiles.tile(3);
  A *rows = tiles.rows(0), *out = k;  // k is free once transposed
  gather(from, stride, n, queries, size, width, q);
  gather(from + a.heads * size, stride, n, n, size, width, k);
  gather(from + 2 * a.heads * size, stride, n, n, size, width, v);
  transpose(k, n, padded, size, width, keys);
  for (int64_t t = 0; t < n; t += kGroup) {
    const int64_t count = std::min<int64_t>(kGroup, n - t);
    const Keys group = keys_of_group<A>(t, count, n, a.window);
    dot_rows(q + t * width, keys, group, size, width, padded, rows);
    for (int64_t i = 0; i < count; ++i) {
      A* row = rows + i * padded;
      lse[(begin + t + i) * a.heads + head] =
          softmax_row(a.scale, keys_of(t + i, n, a.window), group, row);
      if (mask.on) {
        mask.draw(t + i, head, group, tiles.lanes());
        for (int64_t u = group.first; u < group.end; u += kLanes<A>)
          store(row + u, mask.apply(load(row + u), tiles.lanes() + (u - group.first)));
      }
    }
    combine_rows(rows, v, group, width, padded, out);
    for (int64_t i = 0; i < count; ++i)
      for_each_vector<A>(size, [&](auto at) {
        at.store_to(output + ((begin + t + i) * a.heads + head) * size,
                    load(out + i * width + at.at));
      });
  }
}

// With P the probabilities, M the mask over 1-p, and dP = (dO V^T) M:
//   dV = (P M)^T dO,  dS = P (dP - rowsum(P dP)),  dQ = scale dS K,  dK = scale dS^T Q.
// The row sum is taken here and not from dO O: in bf16 that would carry O's rounding into all keys.
template <class T, class A>
void backward_head(const AttentionProblem<T>& a, int64_t s, int64_t head, const Mask<A>& mask,
                   Tiles<A>& tiles, const T* d_output, const A* lse, T* dqkv) {
  const int64_t begin = a.cu_seqlens[s], n = a.cu_seqlens[s + 1] - begin;
  const int64_t size = a.head_size, width = tiles.width(), stride = 3 * a.heads * size;
  const int64_t padded = round_up(n, kLanes<A>), queries = round_up(n, kGroup);
  const int64_t part = a.heads * size;
  const T* from = a.qkv + begin * stride + head * size;
  T* to = dqkv + begin * stride + head * size;
  A *q = tiles.tile(0), *k = tiles.tile(1), *v = tiles.tile(2), *keys = tiles.tile(3);
  A *values = tiles.tile(4), *d_out = tiles.tile(5), *dk = tiles.tile(6), *dv = v;
  A *p = tiles.rows(0), *dp = tiles.rows(1), *dq = tiles.tile(7);
  gather(from, stride, n, queries, size, width, q);
  gather(from + part, stride, n, n, size, width, k);
  gather(from + 2 * part, stride, n, n, size, width, v);
  gather(d_output + begin * part + head * size, part, n, queries, size, width, d_out);
  transpose(k, n, padded, size, width, keys);
  transpose(v, n, padded, size, width, values);
  std::memset(dk, 0, static_cast<size_t>(n * width) * sizeof(A));
  std::memset(dv, 0, static_cast<size_t>(n * width) * sizeof(A));  // v is free once transposed
  for (int64_t t = 0; t < n; t += kGroup) {
    const int64_t count = std::min<int64_t>(kGroup, n - t);
    const Keys group = keys_of_group<A>(t, count, n, a.window);
    dot_rows(q + t * width, keys, group, size, width, padded, p);
    dot_rows(d_out + t * width, values, group, size, width, padded, dp);
    std::memset(p + count * padded, 0, static_cast<size_t>((kGroup - count) * padded) * sizeof(A));
    for (int64_t i = 0; i < count; ++i) {
      A *p_row = p + i * padded, *dp_row = dp + i * padded;
      const A log_sum = lse[(begin + t + i) * a.heads + head];
      if (mask.on) mask.draw(t + i, head, group, tiles.lanes());
      const Keys seen = keys_of(t + i, n, a.window);
      Vec<A> along{};
      for (int64_t u = group.first; u < group.end; u += kLanes<A>) {
        Vec<A> prob = exp_of(a.scale * load(p_row + u) - log_sum);
        if (u < seen.first || seen.end - u < kLanes<A>) {
          store(p_row + u, prob);
          for (int64_t l = u; l < u + kLanes<A>; ++l)
            if (l < seen.first || l >= seen.end) p_row[l] = 0;
          prob = load(p_row + u);
        }
        store(p_row + u, prob);
        Vec<A> d = load(dp_row + u);
        if (mask.on) d = mask.apply(d, tiles.lanes() + (u - group.first));
        store(dp_row + u, d);
        along += prob * d;
      }
      const A sum = sum_lanes<A>(along);
      for (int64_t u = group.first; u < group.end; u += kLanes<A>) {
        const Vec<A> prob = load(p_row + u);
        store(dp_row + u, a.scale * prob * (load(dp_row + u) - sum));
        if (mask.on) store(p_row + u, mask.apply(prob, tiles.lanes() + (u - group.first)));
      }
    }
    std::memset(dp + count * padded, 0, static_cast<size_t>((kGroup - count) * padded) * sizeof(A));
    scatter_rows(p, d_out + t * width, group, width, padded, dv);
    scatter_rows(dp, q + t * width, group, width, padded, dk);
    combine_rows(dp, k, group, width, padded, dq);
    for (int64_t i = 0; i < count; ++i)
      for_each_vector<A>(
          size, [&](auto at) { at.store_to(to + (t + i) * stride, load(dq + i * width + at.at)); });
  }
  for (int64_t t = 0; t < n; ++t)
    for_each_vector<A>(size, [&](auto at) {
      at.store_to(to + t * stride + part, load(dk + t * width + at.at));
      at.store_to(to + t * stride + 2 * part, load(dv + t * width + at.at));
    });
}

// f(sequence, head, mask, tiles) for all, in parallel over sequences.
template <class T, class F>
void for_each_head(const AttentionProblem<T>& a, int tiles, const F& f) {
  using A = AccumulateType<T>;
  parallel_for(a.sequences, 8, [&](int64_t first, int64_t last) {
    Tiles<A> scratch(a.longest, a.head_size, tiles);
    for (int64_t s = first; s < last; ++s) {
      const Mask<A> mask(a, s);
      for (int64_t head = 0; head < a.heads; ++head) f(s, head, mask, scratch);
    }
  });
}

template <class T, class A>
void forward(const AttentionProblem<T>& a, T* output, A* lse) {
  for_each_head(a, 4, [&](int64_t s, int64_t head, const Mask<A>& mask, Tiles<A>& tiles) {
    forward_head(a, s, head, mask, tiles, output, lse);
  });
}

template <class T, class A>
void backward(const AttentionProblem<T>& a, const T* d_output, const A* lse, T* dqkv) {
  for_each_head(a, 8, [&](int64_t s, int64_t head, const Mask<A>& mask, Tiles<A>& tiles) {
    backward_head(a, s, head, mask, tiles, d_output, lse, dqkv);
  });
}

template <class T, class A>
void rotate(int64_t sequences, const int32_t* cu_seqlens, int64_t heads, int64_t head_size,
            const A* cosines, const A* sines, T* qkv) {
  const int64_t half = head_size / 2;
  parallel_for(sequences, 16, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      for (int64_t t = cu_seqlens[s]; t < cu_seqlens[s + 1]; ++t) {
        const A* cosine = cosines + (t - cu_seqlens[s]) * half;
        const A* sine = sines + (t - cu_seqlens[s]) * half;
        for (int64_t head = 0; head < 2 * heads; ++head) {  // of q, then of k
          T* left = qkv + t * 3 * heads * head_size + head * head_size;
          T* right = left + half;
          for_each_vector<A>(half, [&](auto at) {
            const Vec<A> x = at.load_from(left), y = at.load_from(right);
            const Vec<A> c = at.load_from(cosine), d = at.load_from(sine);
            at.store_to(left, x * c - y * d);
            at.store_to(right, y * c + x * d);
          });
        }
      }
    }
  });
}

}  // namespace AMUR_ISA

AMUR_KERNEL_TABLE(AttentionKernels<float>, AMUR_ISA::forward, AMUR_ISA::backward, AMUR_ISA::rotate)
AMUR_KERNEL_TABLE(AttentionKernels<bf16>, AMUR_ISA::forward, AMUR_ISA::backward, AMUR_ISA::rotate)
AMUR_KERNEL_TABLE(AttentionKernels<double>, AMUR_ISA::forward, AMUR_ISA::backward, AMUR_ISA::rotate)

}  // namespace amur::cpu
