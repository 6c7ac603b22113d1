#include "tests/unit/model/fixture.h"

#include <algorithm>
#include <cmath>

#include "src/core/random.h"

namespace amur::test {

namespace {

uint64_t name_key(const std::string& name) {
  RandomKey key(11);
  for (char c : name) key = key.fold(static_cast<unsigned char>(c));
  return key.value();
}

double sign_at(RandomKey key, int64_t i) {
  return key.bits64(static_cast<uint64_t>(i)) & 1 ? 1 : -1;
}

// Fourth-order central difference of `loss` along x + t v, v of +-1.
double slope_along(TensorView x, RandomKey key, const std::function<double()>& loss, double step) {
  const std::vector<double> start = to_doubles(x);
  const auto at = [&](double t) {
    for (int64_t i = 0; i < x.elements(); ++i)
      set(x, i, start[static_cast<size_t>(i)] + t * sign_at(key, i));
    return loss();
  };
  const double slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
  for (int64_t i = 0; i < x.elements(); ++i) set(x, i, start[static_cast<size_t>(i)]);
  return slope;
}

double slope_of(ConstTensorView gradient, RandomKey key) {
  double sum = 0;
  for (int64_t i = 0; i < gradient.elements(); ++i) sum += get(gradient, i) * sign_at(key, i);
  return sum;
}

double norm_of(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

TestChunk::TestChunk(const std::vector<Text>& texts, int64_t vocab) {
  const auto count = static_cast<int64_t>(texts.size());
  cu_seqlens_ = Tensor({count + 1}, DType::i32);
  keys_ = Tensor({count}, DType::i64);
  int32_t tokens = 0, longest = 0;
  for (int64_t s = 0; s <= count; ++s) {
    cu_seqlens_.as<int32_t>()[s] = tokens;
    if (s == count) break;
    const Text& text = texts[static_cast<size_t>(s)];
    keys_.as<int64_t>()[s] = static_cast<int64_t>(RandomKey(3).fold(text.sample).value());
    tokens += text.length;
    longest = std::max(longest, text.length);
  }
  ids_ = Tensor({tokens}, DType::i32);
  for (int64_t s = 0; s < count; ++s) {
    const Text& text = texts[static_cast<size_t>(s)];
    const RandomKey key = RandomKey(5).fold(text.sample);
    for (int32_t i = 0; i < text.length; ++i)
      ids_.as<int32_t>()[cu_seqlens_.as<int32_t>()[s] + i] =
          static_cast<int32_t>(key.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  }
  view_ = {ids_, {cu_seqlens_, keys_, longest}};
}

std::vector<int32_t> TestChunk::tokens_of(int64_t sequence) const {
  const int32_t* cu = cu_seqlens_.as<int32_t>();
  const int32_t* ids = ids_.as<int32_t>();
  return {ids + cu[sequence], ids + cu[sequence + 1]};
}

void fill_parameters(ParameterSet& parameters, double spread) {
  for (Parameter& p : parameters) {
    const RandomKey key(name_key(p.name));
    const double centre = p.kind == ParamKind::gain ? 1 : 0;
    for (int64_t i = 0; i < p.value.elements(); ++i)
      set(p.value, i, static_cast<float>(centre + spread * key.normal(static_cast<uint64_t>(i))));
  }
}

double get(ConstTensorView view, int64_t i) {
  return dispatch_float(view.dtype(), "get",
                        [&]<class T>() { return static_cast<double>(view.as<T>()[i]); });
}

void set(TensorView view, int64_t i, double value) {
  switch (view.dtype()) {
    case DType::f64:
      view.as<double>()[i] = value;
      break;
    case DType::f32:
      view.as<float>()[i] = static_cast<float>(value);
      break;
    default:
      view.as<bf16>()[i] = bf16(static_cast<float>(value));
  }
}

Tensor random_tensor(Shape shape, DType dtype, uint64_t seed) {
  Tensor t(shape, dtype);
  for (int64_t i = 0; i < t.elements(); ++i)
    set(t, i, static_cast<float>(RandomKey(seed).normal(static_cast<uint64_t>(i))));
  return t;
}

std::vector<double> to_doubles(ConstTensorView view) {
  std::vector<double> v(static_cast<size_t>(view.elements()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = get(view, static_cast<int64_t>(i));
  return v;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return norm_of(difference) / norm_of(b);
}

void Bench::start(double sink_scale, double spread) {
  parameters.allocate(parameter_type(), Device::cpu(), 0, 1);
  fill_parameters(parameters, spread);
  for (Parameter& p : parameters) {
    sinks.push_back(Tensor::zeros(p.value.shape(), parameter_type()));
    p.sink = sinks.back();
    p.sink_scale = sink_scale;
  }
}

void Bench::zero_sinks() {
  for (Tensor& sink : sinks) fill_zero(sink);
}

Context Bench::context(const TestChunk& chunk, bool training, bool keep) {
  Context context;
  context.chunk = &chunk.view();
  context.saved = keep ? &saved : nullptr;
  context.scratch = &scratch;
  context.dtype = dtype_;
  context.training = training;
  return context;
}

Tensor TestEncoder::forward(const TestChunk& chunk, bool training, bool keep) {
  Tensor h({chunk.view().sequences(), encoder.embedding_size()}, parameter_type());
  encoder.forward(context(chunk, training, keep), h);
  return h;
}

Tensor TestEncoder::weights_for(const TestChunk& chunk) const {
  Tensor weights({chunk.view().sequences(), encoder.embedding_size()}, parameter_type());
  const auto* keys = chunk.view().packed.dropout_keys.as<int64_t>();
  for (int64_t i = 0; i < weights.elements(); ++i) {
    const RandomKey key(static_cast<uint64_t>(keys[i / encoder.embedding_size()]));
    set(weights, i,
        static_cast<float>(
            key.fold(99).normal(static_cast<uint64_t>(i % encoder.embedding_size()))));
  }
  return weights;
}

void TestEncoder::backward(const TestChunk& chunk, bool training) {
  encoder.backward(context(chunk, training), weights_for(chunk));
}

double TestEncoder::loss(const TestChunk& chunk, bool training) {
  const Tensor h = forward(chunk, training, false);
  const Tensor weights = weights_for(chunk);
  double sum = 0;
  for (int64_t i = 0; i < h.elements(); ++i) sum += get(h, i) * get(weights, i);
  return sum;
}

double gradient_error(Bench& bench, const std::function<double()>& loss, double step,
                      int directions, std::string* worst) {
  double squares = 0;
  int64_t elements = 0;
  for (const Tensor& sink : bench.sinks) {
    squares += std::pow(norm_of(to_doubles(sink)), 2);
    elements += sink.elements();
  }
  const double rms = std::sqrt(squares / static_cast<double>(elements));
  double largest = 0;
  for (size_t i = 0; i < bench.parameters.size(); ++i) {
    Parameter& p = bench.parameters[i];
    const Tensor& sink = bench.sinks[i];
    const double floor = 1e-3 * std::sqrt(static_cast<double>(sink.elements())) * rms;
    const double size = p.zero_gradient ? floor : std::max(norm_of(to_doubles(sink)), floor);
    // A parameter that should move nothing meets no kink either, however long the step.
    const double h = p.zero_gradient ? 100 * step : step;
    for (int d = 0; d < directions; ++d) {
      const RandomKey key = RandomKey(name_key(p.name)).fold(static_cast<uint64_t>(d));
      const double exact = slope_along(p.value, key, loss, h) * p.sink_scale;
      const double error = std::abs(slope_of(sink, key) - exact) / size;
      if (!(error <= largest)) {
        largest = error;
        if (worst != nullptr) *worst = p.name;
      }
    }
  }
  return largest;
}

double input_gradient_error(TensorView x, ConstTensorView dx, const std::function<double()>& loss,
                            double step) {
  double largest = 0;
  for (uint64_t d = 0; d < 3; ++d) {
    const RandomKey key = RandomKey(21).fold(d);
    const double error = std::abs(slope_of(dx, key) - slope_along(x, key, loss, step));
    largest = std::max(largest, error / norm_of(to_doubles(dx)));
  }
  return largest;
}

ModelConfig tiny_config() {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 8;
  config.heads = 2;
  config.head_size = 6;  // not hidden / heads
  config.ffn = 12;
  config.max_length = 9;
  config.vocab = 13;
  config.norm_eps = 1e-3;
  config.dropout = 0;
  config.attention_dropout = 0;
  return config;
}

TestChunk tiny_chunk(const ModelConfig& config) {
  return TestChunk({{100, 3}, {101, 1}, {102, 6}}, config.vocab);
}

}  // namespace amur::test
