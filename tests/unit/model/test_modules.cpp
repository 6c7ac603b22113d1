// Each module alone: gradients of parameters and input against central differences in double.
#include <gtest/gtest.h>

#include "src/model/attention.h"
#include "src/model/embedding.h"
#include "src/model/feed_forward.h"
#include "src/model/linear.h"
#include "tests/unit/model/fixture.h"

namespace amur::test {
namespace {

constexpr double kModuleBound = 1e-7;
constexpr double kStep = 1e-4;

double weighted_sum(ConstTensorView y) {
  const Tensor weights = random_tensor(y.shape(), y.dtype(), 31);
  double sum = 0;
  for (int64_t i = 0; i < y.elements(); ++i) sum += get(y, i) * get(weights, i);
  return sum;
}

Parameter plain(const std::string& name, ParamKind kind, std::vector<Axis> axes) {
  Parameter p;
  p.name = name;
  p.kind = kind;
  p.axes = std::move(axes);
  return p;
}

TEST(Linear, GradientsAndAccumulation) {
  const ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  Bench bench(DType::f64);
  Parameter& weight = bench.parameters.add(
      plain("w", ParamKind::weight,
            {{2, AxisRole::fixed}, {3, AxisRole::ffn}, {2, AxisRole::heads}, {4, AxisRole::head}}));
  Parameter& bias =
      bench.parameters.add(plain("b", ParamKind::bias, {{2, AxisRole::fixed}, {3, AxisRole::ffn}}));
  bench.start(0.25);
  const Linear linear(weight, &bias, 2);
  EXPECT_EQ(linear.inputs(), 8);
  EXPECT_EQ(linear.outputs(), 6);
  EXPECT_EQ(linear.flops(10), 960);

  Tensor x = random_tensor({10, 2, 4}, DType::f64, 1);
  const Tensor dy = random_tensor({10, 6}, DType::f64, 31);
  const auto loss = [&] {
    Tensor y({10, 6}, DType::f64);
    linear.forward(bench.context(chunk), x, y);
    return weighted_sum(y);
  };
  Tensor dx({10, 8}, DType::f64);
  linear.backward(bench.context(chunk), x, dy, 0, dx);
  EXPECT_LT(gradient_error(bench, loss, kStep, 3), kModuleBound);
  EXPECT_LT(input_gradient_error(x, dx, loss, kStep), kModuleBound);

  // beta adds to dx, and the sinks take a second gradient on top of the first.
  const std::vector<double> once = to_doubles(dx), sink_once = to_doubles(bench.sinks[0]);
  linear.backward(bench.context(chunk), x, dy, 0.5, dx);
  for (size_t i = 0; i < once.size(); ++i)
    EXPECT_NEAR(get(dx, static_cast<int64_t>(i)), 1.5 * once[i], 1e-13);
  for (size_t i = 0; i < sink_once.size(); ++i)
    EXPECT_NEAR(get(bench.sinks[0], static_cast<int64_t>(i)), 2 * sink_once[i], 1e-13);
  EXPECT_EQ(bench.scratch.mark(), 0u);
}

TEST(Linear, InputGradientMayTakeThePlaceOfTheInput) {
  const ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    Bench bench(dtype);
    Parameter& weight = bench.parameters.add(
        plain("w", ParamKind::weight, {{6, AxisRole::ffn}, {8, AxisRole::model}}));
    bench.start();
    const Linear linear(weight, nullptr, 1);
    Tensor x = random_tensor({10, 8}, dtype, 1), dx({10, 8}, dtype);
    const Tensor dy = random_tensor({10, 6}, dtype, 2);
    linear.backward(bench.context(chunk), x, dy, 0, dx);
    const std::vector<double> apart = to_doubles(dx), sink = to_doubles(bench.sinks[0]);
    bench.zero_sinks();
    linear.backward(bench.context(chunk), x, dy, 0, x);
    EXPECT_EQ(to_doubles(x), apart);
    EXPECT_EQ(to_doubles(bench.sinks[0]), sink);
  }
}

TEST(Linear, NoGradientWithoutASink) {
  const ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  Bench bench(DType::f32);
  Parameter& weight = bench.parameters.add(
      plain("w", ParamKind::weight, {{6, AxisRole::ffn}, {8, AxisRole::model}}));
  Parameter& bias = bench.parameters.add(plain("b", ParamKind::bias, {{6, AxisRole::ffn}}));
  bench.start();
  weight.frozen = true;
  bias.sink = {};
  const Tensor x = random_tensor({10, 8}, DType::f32, 1),
               dy = random_tensor({10, 6}, DType::f32, 2);
  Linear(weight, &bias, 1).backward(bench.context(chunk), x, dy, 0, {});
  for (const Tensor& sink : bench.sinks)
    for (double g : to_doubles(sink)) EXPECT_EQ(g, 0);
}

TEST(Norm, Gradients) {
  ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  for (NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (bool bias : {true, false}) {
      config.norm = kind;
      config.bias = bias;
      Bench bench(DType::f64);
      const Norm norm(config, "n", bench.parameters);
      EXPECT_EQ(bench.parameters.size(), bias && kind == NormKind::layer ? 2u : 1u);
      bench.start(0.5);
      Tensor x = random_tensor({10, 8}, DType::f64, 1);
      const Context context = bench.context(chunk);
      ScratchScope scratch(bench.scratch);
      const NormStatistics statistics = norm.statistics(scratch, x);
      const auto loss = [&] {
        Tensor y({10, 8}, DType::f64);
        norm.forward(context, x, y, statistics);
        return weighted_sum(y);
      };
      loss();
      Tensor dx = random_tensor({10, 8}, DType::f64, 31);
      norm.backward(context, dx, x, statistics, {}, dx);
      EXPECT_LT(gradient_error(bench, loss, kStep, 3), kModuleBound);
      EXPECT_LT(input_gradient_error(x, dx, loss, kStep), kModuleBound);
    }
  }
}

TEST(Embedding, Gradients) {
  ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  for (int64_t layers : {0, 1})
    for (PositionKind position : {PositionKind::learned, PositionKind::sinusoidal})
      for (double dropout : {0.0, 0.3}) {
        config.layers = layers;
        config.position = position;
        config.dropout = dropout;
        Bench bench(DType::f64);
        const Embedding embedding(config, "e", bench.parameters);
        bench.start(0.5);
        const Context context = bench.context(chunk);
        const auto loss = [&] {
          Tensor x({10, 8}, DType::f64);
          ScratchScope scratch(*context.scratch);
          embedding.forward(context, x, x, embedding.statistics(scratch, x));
          return weighted_sum(x);
        };
        Tensor dx = random_tensor({10, 8}, DType::f64, 31);
        {
          Tensor x({10, 8}, DType::f64), before({10, 8}, DType::f64);
          ScratchScope scratch(*context.scratch);
          const NormStatistics statistics = embedding.statistics(scratch, x);
          embedding.forward(context, x, before, statistics);
          embedding.backward(context, dx, before, statistics);
        }
        EXPECT_LT(gradient_error(bench, loss, kStep, 3), kModuleBound)
            << layers << " layers, dropout " << dropout;
      }
}

void check_branch(Bench& bench, const Branch& branch, const TestChunk& chunk) {
  const Context context = bench.context(chunk);
  Context inference = context;
  inference.saved = nullptr;
  Tensor n = random_tensor({10, 8}, DType::f64, 1);
  const auto loss = [&] {
    Tensor y({10, 8}, DType::f64);
    branch.forward(inference, n, y);
    return weighted_sum(y);
  };
  Tensor y({10, 8}, DType::f64);
  branch.forward(context, n, y);
  EXPECT_EQ(bench.saved.bytes(), branch.saved_bytes(10, DType::f64));
  EXPECT_EQ(weighted_sum(y), loss());
  const Tensor dy = random_tensor({10, 8}, DType::f64, 31);
  Tensor dn({10, 8}, DType::f64);
  branch.backward(context, n, dy, 0, dn, false);
  EXPECT_EQ(bench.saved.bytes(), 0u);
  EXPECT_EQ(bench.scratch.bytes(), 0u);
  EXPECT_LT(gradient_error(bench, loss, kStep, 3), kModuleBound);
  EXPECT_LT(input_gradient_error(n, dn, loss, kStep), kModuleBound);

  // dn in the place of dy: dy plus the gradient.
  branch.forward(context, n, y);
  Tensor in_place = random_tensor({10, 8}, DType::f64, 31);
  branch.backward(context, n, in_place, 1, in_place, false);
  for (int64_t i = 0; i < dn.elements(); ++i)
    EXPECT_NEAR(get(in_place, i), get(dn, i) + get(dy, i), 1e-12);
}

TEST(Attention, Gradients) {
  ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  for (PositionKind position : {PositionKind::none, PositionKind::rotary})
    for (int biases : {0, 1, 2})
      for (double dropout : {0.0, 0.3}) {
        config.position = position;
        config.bias = biases > 0;
        config.key_bias = biases > 1;
        config.attention_dropout = dropout;
        Bench bench(DType::f64);
        const Attention attention(config, 1, "a", bench.parameters);
        bench.start(0.5);
        SCOPED_TRACE(fmt::format("{} biases, dropout {}", biases, dropout));
        check_branch(bench, attention, chunk);
        EXPECT_EQ(attention.forward_flops(std::vector<int64_t>{3, 1, 6}),
                  2 * 10 * 8 * (36 + 12) + 4 * 46 * 12);
      }
}

TEST(Attention, OnlyWithoutRotationDoesTheKeyBiasCancel) {
  ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  config.key_bias = true;
  for (PositionKind position : {PositionKind::none, PositionKind::rotary}) {
    config.position = position;
    Bench bench(DType::f64);
    const Attention attention(config, 0, "a", bench.parameters);
    bench.start();
    const Parameter* bias = bench.parameters.find("a.key.bias");
    ASSERT_NE(bias, nullptr);
    const Tensor n = random_tensor({10, 8}, DType::f64, 1);
    Tensor y({10, 8}, DType::f64);
    attention.forward(bench.context(chunk), n, y);
    attention.backward(bench.context(chunk), n, random_tensor({10, 8}, DType::f64, 31), 0, y,
                       false);
    double largest = 0;
    for (int64_t i = 0; i < bias->sink.elements(); ++i)
      largest = std::max(largest, std::abs(get(bias->sink, i)));
    EXPECT_EQ(bias->zero_gradient, largest < 1e-12) << largest;
    EXPECT_EQ(bias->zero_gradient, position == PositionKind::none);
  }
}

TEST(FeedForward, Gradients) {
  ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  for (ActivationKind activation : {ActivationKind::gelu, ActivationKind::gelu_tanh,
                                    ActivationKind::swiglu, ActivationKind::geglu})
    for (bool bias : {true, false}) {
      config.activation = activation;
      config.bias = bias;
      Bench bench(DType::f64);
      const FeedForward feed_forward(config, "f", bench.parameters);
      bench.start(0.5);
      SCOPED_TRACE(fmt::format("activation {}, bias {}", static_cast<int>(activation), bias));
      check_branch(bench, feed_forward, chunk);
    }
}

}  // namespace
}  // namespace amur::test
