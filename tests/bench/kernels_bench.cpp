// Speed of the kernels on the shapes of encoders over packed texts, on the CPU or on a GPU.
//
//   OMP_NUM_THREADS=1 build/release/tests/bench/amur_bench_kernels [--device cpu|cuda]
//       [options of Google Benchmark, e.g. --benchmark_filter=attention]
//
// `copies`: time as a multiple of copying the tensors that must be read and written. `FLOP/s`: of
// products and attention. `peak`: that as a share of the rate of the large bf16 product measured at
// the start. `share`: time as a share of the products of one encoder layer's forward (4 hidden^2 +
// 2 hidden * ffn per token, f32 on the CPU, bf16 on a GPU) at the rate measured here. On a GPU a
// call's time is that of one among sixteen that are waited for together: what launches cost is in
// it only where the GPU has to wait for them.
#include <benchmark/benchmark.h>

#include <iostream>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/attention_engine.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/optimizer_update.h"
#include "tests/bench/bench_device.h"

namespace amur {
namespace {

// What is measured: small shapes for a CPU; on a GPU tensors that are larger than its cache.
struct Setup {
  Device device;
  Floors floors;
  int64_t tokens = 8192, hidden = 384, ffn = 1536, heads = 12;
  std::vector<int64_t> widths = {384};               // of products; their feed-forward is 4 times
  std::vector<int64_t> dtypes = {0, 1};              // f32, bf16
  std::vector<int64_t> lengths = {512, 2048, 8192};  // of texts that attention sees
  std::vector<int64_t> head_sizes = {64};
  int64_t attention_heads = 4;
  std::vector<int64_t> attention_dtypes = {0};
  int64_t optimizer_elements = 10'000'000, optimizer_tensors = 100;
};

Setup setup;  // by main, before the first benchmark

Setup setup_of(Device device) {
  Setup s;
  s.device = device;
  if (device.kind == Device::Kind::cuda) {
    s.tokens = 32768;
    s.hidden = 768;
    s.ffn = 3072;
    s.widths = {384, 768, 1024};
    s.dtypes = {1};
    s.lengths = {16, 32, 64, 128, 256, 512, 2048, 8192};
    s.head_sizes = {32, 64};
    s.attention_heads = 12;
    s.attention_dtypes = {1};
    s.optimizer_elements = 110'000'000;  // BERT-base
    s.optimizer_tensors = 200;
  }
  return s;
}

Tensor values(Shape shape, DType dtype) {
  return random_tensor(shape, dtype, setup.device);
}
Tensor space(Shape shape, DType dtype) {
  return Tensor::zeros(shape, dtype, setup.device);
}
Tensor from_host(ConstTensorView host) {
  Tensor t(host.shape(), host.dtype(), setup.device);
  copy(t, host);
  return t;
}

double seconds_of_layer_products() {
  static const double seconds = [] {
    const DType dtype = setup.device == Device::cpu() ? DType::f32 : DType::bf16;
    const Tensor x = values({setup.tokens, setup.hidden}, dtype);
    const Tensor w = values({setup.ffn, setup.hidden}, dtype);
    Tensor y({setup.tokens, setup.ffn}, dtype, setup.device);
    const double one =
        seconds_of(setup.device, [&] { gemm(Transpose::no, Transpose::yes, 1, x, w, 0, y); });
    return one * static_cast<double>(4 * setup.hidden + 2 * setup.ffn) /
           static_cast<double>(setup.ffn);
  }();
  return seconds;
}

// Seconds of a call of f.
template <class F>
double time_of(benchmark::State& state, const F& f) {
  const Stream stream(setup.device);
  const int64_t together = setup.device == Device::cpu() ? 1 : 16;
  f();
  stream.synchronize();
  Stopwatch watch;
  while (state.KeepRunningBatch(together)) {
    for (int64_t i = 0; i < together; ++i) f();
    stream.synchronize();
  }
  return watch.elapsed() / static_cast<double>(state.iterations());
}

// `bytes` of tensors are read or written by one call of f, which makes `flops` operations (0: few).
template <class F>
void measure(benchmark::State& state, double bytes, double flops, const F& f) {
  const double layer = seconds_of_layer_products();
  const double seconds = time_of(state, f);
  state.counters["copies"] = seconds * setup.floors.bytes_per_second / bytes;
  state.counters["share"] = seconds / layer;
  if (flops == 0) return;
  state.counters["FLOP/s"] = flops / seconds;
  state.counters["peak"] = flops / seconds / setup.floors.flops_per_second;
}

// Lengths 3..40 with a median of 7, as in dictionaries.
struct Texts {
  PackedSequences packed;

  Texts() {
    std::vector<int32_t> starts{0};
    std::vector<int64_t> key_bits;
    while (starts.back() < setup.tokens) {
      const uint64_t s = starts.size();
      const double u = RandomKey(2).uniform(s);
      const int32_t length = std::min<int32_t>(3 + static_cast<int32_t>(37 * u * u * u),
                                               static_cast<int32_t>(setup.tokens) - starts.back());
      starts.push_back(starts.back() + length);
      key_bits.push_back(static_cast<int64_t>(s));
    }
    const int64_t count = static_cast<int64_t>(key_bits.size());
    starts_ = from_host(ConstTensorView(starts.data(), {count + 1}, DType::i32));
    keys_ = from_host(ConstTensorView(key_bits.data(), {count}, DType::i64));
    packed.cu_seqlens = starts_;
    packed.dropout_keys = keys_;
    packed.longest = 40;
  }

 private:
  Tensor starts_, keys_;
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
  const int64_t in = state.range(1), out = state.range(2), pass = state.range(3);
  const Tensor x = values({setup.tokens, in}, dtype), dy = values({setup.tokens, out}, dtype);
  const Tensor w = values({out, in}, dtype);
  Tensor y = space({setup.tokens, out}, dtype), dx = space({setup.tokens, in}, dtype);
  Tensor dw = space({out, in}, DType::f32);
  const double bytes = pass == 0   ? bytes_of({x, w, y})
                       : pass == 1 ? bytes_of({dy, w, dx})
                                   : bytes_of({dy, x, dw, dw});
  measure(state, bytes, 2.0 * static_cast<double>(setup.tokens * in * out), [&] {
    switch (pass) {
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
  });
}

void norm(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Tensor x = values({setup.tokens, setup.hidden}, dtype),
               gain = values({setup.hidden}, DType::f32);
  Tensor y = space({setup.tokens, setup.hidden}, dtype);
  Tensor mean = space({setup.tokens}, DType::f32), rstd = space({setup.tokens}, DType::f32);
  Tensor sink = space({setup.hidden}, DType::f32), other_sink = space({setup.hidden}, DType::f32);
  norm_forward(NormKind::layer, x, gain, gain, 1e-6, y, mean, rstd);
  if (state.range(1) == 0)
    measure(state, bytes_of({x, y}), 0,
            [&] { norm_forward(NormKind::layer, x, gain, gain, 1e-6, y, mean, rstd); });
  else
    measure(state, bytes_of({x, x, y}), 0, [&] {
      norm_backward(NormKind::layer, x, x, gain, mean, rstd, {}, y, 1, sink, other_sink);
    });
}

void gelu(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Tensor u = values({setup.tokens, setup.ffn}, dtype);
  Tensor y = space({setup.tokens, setup.ffn}, dtype);
  if (state.range(1) == 0)
    measure(state, bytes_of({u, y}), 0, [&] { activation_forward(ActivationKind::gelu, u, y); });
  else
    measure(state, bytes_of({u, u, y}), 0,
            [&] { activation_backward(ActivationKind::gelu, u, u, y); });
}

// Tensors of attention over given boundaries, and its passes.
void time_attention(benchmark::State& state, const PackedSequences& packed, DType dtype,
                    int64_t heads, int64_t size, bool backward, int64_t window, double flops) {
  const Tensor qkv = values({setup.tokens, 3, heads, size}, dtype);
  Tensor o = space({setup.tokens, heads, size}, dtype), d_qkv = space(qkv.shape(), dtype);
  Tensor lse = space({setup.tokens, heads}, DType::f32);
  attention_forward(packed, qkv, 0.125, {}, o, lse, window);
  if (backward)
    measure(state, bytes_of({qkv, o, d_qkv}), 2.5 * flops,
            [&] { attention_backward(packed, o, qkv, o, lse, 0.125, {}, d_qkv, window); });
  else
    measure(state, bytes_of({qkv, o}), flops,
            [&] { attention_forward(packed, qkv, 0.125, {}, o, lse, window); });
}

// range: dtype, pass. Over the texts of a dictionary.
void attention(benchmark::State& state) {
  const Texts texts;
  time_attention(state, texts.packed, dtype_of_state(state), setup.heads,
                 setup.hidden / setup.heads, state.range(1) == 1, 0, 0);
}

// range: dtype, pass, tokens of every text, of which a query sees so many on either side (0: all),
// size of a head. The operations are those of what is seen.
void attention_of_engine(benchmark::State& state, AttentionEngine engine) {
  const int64_t length = state.range(2), window = state.range(3), heads = setup.attention_heads;
  std::vector<int32_t> starts;
  for (int64_t t = 0; t <= setup.tokens; t += length) starts.push_back(static_cast<int32_t>(t));
  const Tensor boundaries =
      from_host(ConstTensorView(starts.data(), {std::ssize(starts)}, DType::i32));
  PackedSequences packed;
  packed.cu_seqlens = boundaries;
  packed.longest = length;
  const int64_t seen = window > 0 ? std::min(length, 2 * window + 1) : length;
  if (engine == AttentionEngine::cudnn) {
    const auto direction =
        state.range(1) == 1 ? AttentionDirection::backward : AttentionDirection::forward;
    const AttentionTimes times = time_attention_engines(
        {direction, heads, state.range(4), length_bucket(length)}, setup.tokens, setup.device);
    if (!times.cudnn) return state.SkipWithError(times.problem.c_str());
  }
  const AttentionEngines before = use_attention_engines({engine, {}}, setup.device);
  time_attention(state, packed, dtype_of_state(state), heads, state.range(4), state.range(1) == 1,
                 window, 4.0 * static_cast<double>(setup.tokens * seen * heads * state.range(4)));
  use_attention_engines(before, setup.device);
}
void attention_by_length(benchmark::State& state) {
  attention_of_engine(state, AttentionEngine::own);
}
void attention_by_cudnn(benchmark::State& state) {
  attention_of_engine(state, AttentionEngine::cudnn);
}

void dropout(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Texts texts;
  const Tensor x = values({setup.tokens, setup.hidden}, dtype);
  Tensor y = values({setup.tokens, setup.hidden}, dtype);
  measure(state, bytes_of({x, y, y}), 0, [&] {
    dropout_add_forward(texts.packed, {0.1, 0, 0}, x, y, y);
  });
}

void column_sums(benchmark::State& state) {
  const Tensor dy = values({setup.tokens, setup.ffn}, dtype_of_state(state));
  Tensor sink = space({setup.ffn}, DType::f32);
  measure(state, bytes_of({dy}), 0, [&] { accumulate_column_sums(1, dy, sink); });
}

void embedding(benchmark::State& state) {
  const DType dtype = dtype_of_state(state);
  const Texts texts;
  const int64_t vocabulary = 16000;
  std::vector<int32_t> host(static_cast<size_t>(setup.tokens));
  for (size_t t = 0; t < host.size(); ++t)
    host[t] = static_cast<int32_t>(RandomKey(3).below(t, vocabulary));
  const Tensor ids = from_host(ConstTensorView(host.data(), {setup.tokens}, DType::i32));
  Tensor table = values({vocabulary, setup.hidden}, DType::f32);
  Tensor y = values({setup.tokens, setup.hidden}, dtype);
  if (state.range(1) == 0)
    measure(state, bytes_of({y, y}), 0,
            [&] { embedding_forward(texts.packed, ids, table, {}, y); });
  else
    measure(state, bytes_of({y, y, y}), 0,
            [&] { embedding_backward(texts.packed, ids, y, 1e-6, table, {}); });
}

// One update of all parameters in f32. range: 0 Tiger, 1 Lion, 2 AdamW.
void optimizer_update(benchmark::State& state) {
  const int64_t each = setup.optimizer_elements / setup.optimizer_tensors;
  std::vector<Tensor> theta, first, second, gradient;
  std::vector<ParameterUpdate> updates;
  double bytes = 0;
  for (int64_t i = 0; i < setup.optimizer_tensors; ++i) {
    theta.push_back(values({each}, DType::f32));
    first.push_back(values({each}, DType::f32));
    ParameterUpdate update{SignStep{1e-3, 0.01}, theta.back(), first.back()};
    bytes += bytes_of({theta.back(), theta.back(), first.back()});
    if (state.range(0) > 0) {
      gradient.push_back(values({each}, DType::f32));
      update.gradient = gradient.back();
      update.step = LionStep{1e-3, 0.01, 0.95, 0.98};
      bytes += bytes_of({gradient.back(), first.back()});
    }
    if (state.range(0) == 2) {
      second.push_back(space({each}, DType::f32));
      update.second_moment = second.back();
      update.step = AdamWStep{1e-3, 0.01, 0.9, 0.999, 1e-8, 10};
      bytes += bytes_of({second.back(), second.back()});
    }
    updates.push_back(update);
  }
  measure(state, bytes, 0, [&] { update_parameters(updates); });
}

void register_benchmarks() {
  const auto add = [](const char* name, void (*f)(benchmark::State&),
                      const std::vector<std::vector<int64_t>>& ranges) {
    benchmark::RegisterBenchmark(name, f)->ArgsProduct(ranges)->UseRealTime();
  };
  for (const int64_t width : setup.widths) {
    add("linear", linear, {setup.dtypes, {width}, {width, 3 * width, 4 * width}, {0, 1, 2}});
    add("linear", linear, {setup.dtypes, {4 * width}, {width}, {0, 1, 2}});
  }
  add("norm", norm, {setup.dtypes, {0, 1}});
  add("gelu", gelu, {setup.dtypes, {0, 1}});
  add("attention", attention, {setup.dtypes, {0, 1}});
  add("embedding", embedding, {setup.dtypes, {0, 1}});
  add("dropout", dropout, {setup.dtypes});
  add("column_sums", column_sums, {setup.dtypes});
  add("attention_by_length", attention_by_length,
      {setup.attention_dtypes, {0, 1}, setup.lengths, {0}, setup.head_sizes});
  add("attention_by_length", attention_by_length,
      {setup.attention_dtypes, {0, 1}, {512, 8192}, {64}, {64}});
  if (setup.device != Device::cpu())
    add("attention_by_cudnn", attention_by_cudnn,
        {{1}, {0, 1}, {32, 64, 128, 256, 512}, {0}, setup.head_sizes});
  add("optimizer_update", optimizer_update, {{0, 1, 2}});
}

int run(int argc, char** argv) {
  std::vector<std::string> args(argv, argv + argc);
  setup = setup_of(take_device(args));
  std::vector<char*> left;
  for (std::string& arg : args) left.push_back(arg.data());
  int count = static_cast<int>(left.size());
  register_benchmarks();
  benchmark::Initialize(&count, left.data());
  if (benchmark::ReportUnrecognizedArguments(count, left.data())) return 2;
  setup.floors = measure_floors(setup.device);
  benchmark::AddCustomContext("device", text_of_device(setup.device));
  benchmark::AddCustomContext("product_size", fmt::format("{}", setup.floors.product_size));
  benchmark::AddCustomContext("floor_flops", fmt::format("{:.6g}", setup.floors.flops_per_second));
  benchmark::AddCustomContext("floor_bytes", fmt::format("{:.6g}", setup.floors.bytes_per_second));
  benchmark::AddCustomContext("tokens", fmt::format("{}", setup.tokens));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace amur

int main(int argc, char** argv) {
  amur::start_again_for_blas(argv);
  try {
    return amur::run(argc, argv);
  } catch (const amur::Error& error) {
    std::cerr << error.what() << '\n';
    return error.exit_code();
  }
}
