// Speed of the CPU kernels on the shapes of a small encoder over packed short texts.
//
//   OMP_NUM_THREADS=1 build/release/tests/bench/amur_bench_kernels
//
// `copies`: time as a multiple of copying the tensors that must be read and written. `GFLOP/s` of
// products to be compared with the machine's peak. `share`: time as a share of the products of one
// encoder layer's forward (f32, 4 hidden^2 + 2 hidden * ffn per token) at the rate measured here.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "src/core/random.h"

namespace amur {
namespace {

constexpr int64_t kTokens = 8192, kHidden = 384, kFfn = 1536, kHeads = 12;

Tensor random_tensor(Shape shape, DType dtype) {
  Tensor values(shape, DType::f32), result(shape, dtype);
  for (int64_t i = 0; i < values.elements(); ++i)
    values.as<float>()[i] =
        static_cast<float>(RandomKey(1).uniform(static_cast<uint64_t>(i))) - 0.5f;
  cast(values, result);
  return result;
}

template <class F>
double seconds_of(const F& f) {
  f();
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

double seconds_to_copy(double bytes) {
  static const double per_byte = [] {
    const size_t n = size_t{64} << 20;
    std::vector<char> from(n, 1), to(n);
    return seconds_of([&] {
             std::memcpy(to.data(), from.data(), n);
             benchmark::DoNotOptimize(to.data());
           }) /
           (2 * static_cast<double>(n));
  }();
  return bytes * per_byte;
}

double seconds_of_layer_products() {
  static const double seconds = [] {
    const Tensor x = random_tensor({kTokens, kHidden}, DType::f32);
    const Tensor w = random_tensor({kFfn, kHidden}, DType::f32);
    Tensor y({kTokens, kFfn}, DType::f32);
    const double one = seconds_of([&] { gemm(Transpose::no, Transpose::yes, 1, x, w, 0, y); });
    return one * (4.0 * kHidden + 2 * kFfn) / kFfn;
  }();
  return seconds;
}

// `bytes` of tensors are read or written by one call of f.
template <class F>
void measure(benchmark::State& state, double bytes, const F& f) {
  const double reference = seconds_to_copy(bytes), layer = seconds_of_layer_products();
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) f();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
      static_cast<double>(state.iterations());
  state.counters["copies"] = seconds / reference;
  state.counters["share"] = seconds / layer;
}

// Lengths 3..40 with a median of 7, as in dictionaries.
struct Texts {
  std::vector<int32_t> starts{0};
  std::vector<int64_t> key_bits;
  PackedSequences packed;

  Texts() {
    while (starts.back() < kTokens) {
      const uint64_t s = starts.size();
      const double u = RandomKey(2).uniform(s);
      const int32_t length = std::min<int32_t>(3 + static_cast<int32_t>(37 * u * u * u),
                                               static_cast<int32_t>(kTokens) - starts.back());
      starts.push_back(starts.back() + length);
      key_bits.push_back(static_cast<int64_t>(s));
    }
    const int64_t count = static_cast<int64_t>(key_bits.size());
    packed.cu_seqlens = ConstTensorView(starts.data(), {count + 1}, DType::i32);
    packed.dropout_keys = ConstTensorView(key_bits.data(), {count}, DType::i64);
    packed.longest = 40;
  }
};

DType dtype_of_state(const benchmark::State& state) {
  return state.range(0) == 0 ? DType::f32 : DType::bf16;
}
double bytes_of(std::initializer_list<ConstTensorView> tensors) {
  double sum = 0;
  for (const auto& t : tensors) sum += static_cast<double>(t.bytes());
  return sum;
}

// range: dtype, inputs, outputs of a linear layer; 0 forward, 1 input gradient, 2 weight gradient.
void linear(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const int64_t in = state.range(1), out = state.range(2);
  const Tensor x = random_tensor({kTokens, in}, dtype), dy = random_tensor({kTokens, out}, dtype);
  const Tensor w = random_tensor({out, in}, dtype);
  Tensor y({kTokens, out}, dtype), dx({kTokens, in}, dtype),
      dw = Tensor::zeros({out, in}, DType::f32);
  for (auto _ : state) {
    switch (state.range(3)) {
      case 0:
        gemm(Transpose::no, Transpose::yes, 1, x, w, 0, y);
        break;
      case 1:
        gemm(Transpose::no, Transpose::no, 1, dy, w, 0, dx);
        break;
      default:
        gemm(Transpose::yes, Transpose::no, 0.035, dy, x, 1, dw);
        break;
    }
  }
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(kTokens * in * out),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(linear)->ArgsProduct({{0, 1}, {kHidden}, {kHidden, kFfn}, {0, 1, 2}})->UseRealTime();

void norm(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Tensor x = random_tensor({kTokens, kHidden}, dtype),
               gain = random_tensor({kHidden}, DType::f32);
  Tensor y({kTokens, kHidden}, dtype), mean({kTokens}, DType::f32), rstd({kTokens}, DType::f32);
  Tensor sink = Tensor::zeros({kHidden}, DType::f32);
  norm_forward(NormKind::layer, x, gain, gain, 1e-6, y, mean, rstd);
  if (state.range(1) == 0)
    measure(state, bytes_of({x, y}),
            [&] { norm_forward(NormKind::layer, x, gain, gain, 1e-6, y, mean, rstd); });
  else
    measure(state, bytes_of({x, x, y}),
            [&] { norm_backward(NormKind::layer, x, x, gain, mean, rstd, {}, y, 1, sink, sink); });
}
BENCHMARK(norm)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

void gelu(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Tensor u = random_tensor({kTokens, kFfn}, dtype);
  Tensor y({kTokens, kFfn}, dtype);
  if (state.range(1) == 0)
    measure(state, bytes_of({u, y}), [&] { activation_forward(ActivationKind::gelu, u, y); });
  else
    measure(state, bytes_of({u, u, y}),
            [&] { activation_backward(ActivationKind::gelu, u, u, y); });
}
BENCHMARK(gelu)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

void attention(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Texts texts;
  const int64_t size = kHidden / kHeads;
  const Tensor qkv = random_tensor({kTokens, 3, kHeads, size}, dtype);
  Tensor o({kTokens, kHeads, size}, dtype), lse({kTokens, kHeads}, DType::f32);
  Tensor d_qkv({kTokens, 3, kHeads, size}, dtype);
  attention_forward(texts.packed, qkv, 0.2, {}, o, lse);
  if (state.range(1) == 0)
    measure(state, bytes_of({qkv, o}),
            [&] { attention_forward(texts.packed, qkv, 0.2, {}, o, lse); });
  else
    measure(state, bytes_of({qkv, o, d_qkv}),
            [&] { attention_backward(texts.packed, o, qkv, o, lse, 0.2, {}, d_qkv); });
}
BENCHMARK(attention)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

// Texts of that many tokens, of which a query sees so many on either side (0: all).
void attention_of_long_texts(benchmark::State& state) {
  const int64_t length = state.range(1), window = state.range(2), heads = 4, size = 64;
  const auto step = static_cast<int32_t>(length);
  std::vector<int32_t> starts;
  for (int32_t t = 0; t <= kTokens; t += step) starts.push_back(t);
  PackedSequences packed;
  packed.cu_seqlens =
      ConstTensorView(starts.data(), {static_cast<int64_t>(starts.size())}, DType::i32);
  packed.longest = length;
  const Tensor qkv = random_tensor({kTokens, 3, heads, size}, DType::f32);
  Tensor o({kTokens, heads, size}, DType::f32), lse({kTokens, heads}, DType::f32);
  Tensor d_qkv({kTokens, 3, heads, size}, DType::f32);
  attention_forward(packed, qkv, 0.125, {}, o, lse, window);
  if (state.range(0) == 0)
    measure(state, bytes_of({qkv, o}),
            [&] { attention_forward(packed, qkv, 0.125, {}, o, lse, window); });
  else
    measure(state, bytes_of({qkv, o, d_qkv}),
            [&] { attention_backward(packed, o, qkv, o, lse, 0.125, {}, d_qkv, window); });
}
BENCHMARK(attention_of_long_texts)
    ->ArgsProduct({{0, 1}, {512, 2048, 8192}, {0, 64}})
    ->UseRealTime();

void dropout(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Texts texts;
  const Tensor x = random_tensor({kTokens, kHidden}, dtype);
  Tensor y = random_tensor({kTokens, kHidden}, dtype);
  measure(state, bytes_of({x, y, y}), [&] {
    dropout_add_forward(texts.packed, {0.1, 0, 0}, x, y, y);
  });
}
BENCHMARK(dropout)->Arg(0)->Arg(1)->UseRealTime();

void column_sums(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Tensor dy = random_tensor({kTokens, kFfn}, dtype);
  Tensor sink = Tensor::zeros({kFfn}, DType::f32);
  measure(state, bytes_of({dy}), [&] { accumulate_column_sums(1, dy, sink); });
}
BENCHMARK(column_sums)->Arg(0)->Arg(1)->UseRealTime();

void embedding(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Texts texts;
  const int64_t vocabulary = 16000;
  Tensor ids({kTokens}, DType::i32);
  for (int64_t t = 0; t < kTokens; ++t)
    ids.as<int32_t>()[t] =
        static_cast<int32_t>(RandomKey(3).below(static_cast<uint64_t>(t), vocabulary));
  Tensor table = random_tensor({vocabulary, kHidden}, DType::f32);
  Tensor y = random_tensor({kTokens, kHidden}, dtype);
  if (state.range(1) == 0)
    measure(state, bytes_of({y, y}), [&] { embedding_forward(texts.packed, ids, table, {}, y); });
  else
    measure(state, bytes_of({y, y, y}),
            [&] { embedding_backward(texts.packed, ids, y, 1e-6, table, {}); });
}
BENCHMARK(embedding)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

}  // namespace
}  // namespace amur

BENCHMARK_MAIN();
