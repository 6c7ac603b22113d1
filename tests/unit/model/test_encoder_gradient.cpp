// The gradients of the whole encoder over its options, against central differences in double.
#include <gtest/gtest.h>

#include "tests/support/sanitized.h"
#include "tests/unit/model/fixture.h"

namespace amur::test {
namespace {

constexpr double kBound = 1e-7;

// The kink of ReLU allows a short step only, and weights under which no token lies on the kink.
bool has_kink(const ModelConfig& config) {
  return config.activation == ActivationKind::relu;
}
double step_for(const ModelConfig& config) {
  return has_kink(config) ? 1e-6 : 1e-4;
}
double spread_for(const ModelConfig& config) {
  return has_kink(config) ? 0.31 : 0.3;
}

std::string describe(const ModelConfig& c) {
  return fmt::format(
      "layers {} norm {} {} position {} activation {} pooling {} projection {} bias {} key bias {} "
      "dropout {}",
      c.layers, c.norm == NormKind::layer ? "layer" : "rms",
      c.norm_position == NormPosition::pre ? "pre" : "post", static_cast<int>(c.position),
      static_cast<int>(c.activation), static_cast<int>(c.pooling), c.projection, c.bias, c.key_bias,
      c.dropout);
}

double error_of(const ModelConfig& config, std::string* worst) {
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, DType::f64, 0.035, spread_for(config));
  model.forward(chunk);
  EXPECT_EQ(model.saved.bytes(), model.encoder.saved_bytes(10, 3, DType::f64));
  model.backward(chunk);
  EXPECT_EQ(model.saved.bytes(), 0u);
  EXPECT_EQ(model.scratch.bytes(), 0u);
  return gradient_error(
      model, [&] { return model.loss(chunk); }, step_for(config), 1, worst);
}

class EncoderGradient : public testing::TestWithParam<std::tuple<NormKind, NormPosition>> {};

TEST_P(EncoderGradient, AgreesWithDifferencesOverAllOptions) {
  ModelConfig config = tiny_config();
  std::tie(config.norm, config.norm_position) = GetParam();
  const int every = kSanitized ? 7 : 1;  // every choice meets every other one
  int number = 0;
  double largest = 0;
  for (PositionKind position :
       {PositionKind::learned, PositionKind::sinusoidal, PositionKind::rotary, PositionKind::none})
    for (ActivationKind activation :
         {ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu,
          ActivationKind::swiglu, ActivationKind::geglu})
      for (PoolingKind pooling : {PoolingKind::mean, PoolingKind::cls})
        for (int64_t projection : {0, 5})
          for (int biases : {0, 1, 2})
            for (double dropout : {0.0, 0.2}) {
              if (number++ % every != 0) continue;
              config.position = position;
              config.activation = activation;
              config.pooling = pooling;
              config.projection = projection;
              config.bias = biases > 0;
              config.key_bias = config.token_type = biases > 1;
              config.dropout = dropout;
              config.attention_dropout = dropout / 2;
              std::string worst;
              const double error = error_of(config, &worst);
              EXPECT_LT(error, kBound) << worst << ": " << describe(config);
              largest = std::max(largest, error);
            }
  RecordProperty("largest_error", fmt::format("{:.2e}", largest));
}

INSTANTIATE_TEST_SUITE_P(Norms, EncoderGradient,
                         testing::Combine(testing::Values(NormKind::layer, NormKind::rms),
                                          testing::Values(NormPosition::pre, NormPosition::post)));

TEST(EncoderGradientEdge, StaticModelAndOtherDepths) {
  for (int64_t layers : {0, 1, 3})
    for (PoolingKind pooling : {PoolingKind::mean, PoolingKind::cls})
      for (int64_t projection : {0, 5})
        for (double dropout : {0.0, 0.2}) {
          ModelConfig config = tiny_config();
          config.layers = layers;
          config.pooling = pooling;
          config.projection = projection;
          config.dropout = dropout;
          std::string worst;
          EXPECT_LT(error_of(config, &worst), kBound) << worst << ": " << describe(config);
        }
}

// What growth leaves behind: gates on norms, at any value, and frequencies that repeat.
TEST(EncoderGradientEdge, GatedNormsAndRepeatedFrequencies) {
  for (const NormKind norm : {NormKind::layer, NormKind::rms})
    for (double dropout : {0.0, 0.2}) {
      ModelConfig config = tiny_config();
      config.norm = norm;
      config.norm_position = NormPosition::post;
      config.norm_gate = true;
      config.position = PositionKind::rotary;
      config.head_size = 6;
      config.rotary_size = 4;
      config.dropout = dropout;
      std::string worst;
      EXPECT_LT(error_of(config, &worst), kBound) << worst << ": " << describe(config);
    }
}

// Layers that see a window between those that see the whole text, with a rotary base of their own.
TEST(EncoderGradientEdge, LocalLayers) {
  for (const NormPosition position : {NormPosition::pre, NormPosition::post})
    for (double dropout : {0.0, 0.2}) {
      ModelConfig config = tiny_config();
      config.layers = 3;
      config.norm_position = position;
      config.position = PositionKind::rotary;
      config.activation = ActivationKind::geglu;
      config.local_attention = 2;
      config.global_every = 2;
      config.local_rotary_base = 30;
      config.dropout = config.attention_dropout = dropout;
      std::string worst;
      EXPECT_LT(error_of(config, &worst), kBound) << worst << ": " << describe(config);
    }
}

// The check sees an error of one part in a million, in any one tensor.
TEST(EncoderGradientEdge, TheCheckSeesAWrongGradient) {
  const ModelConfig config = tiny_config();
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, DType::f64);
  model.forward(chunk);
  model.backward(chunk);
  for (size_t i = 0; i < model.sinks.size(); ++i) {
    const std::vector<double> right = to_doubles(model.sinks[i]);
    double size = 0;
    for (double g : right) size = std::max(size, std::abs(g));
    set(model.sinks[i], 0, right[0] + 3e-6 * size * std::sqrt(static_cast<double>(right.size())));
    std::string worst;
    const auto loss = [&] { return model.loss(chunk); };
    EXPECT_GT(gradient_error(model, loss, 1e-4, 1, &worst), kBound);
    EXPECT_EQ(worst, model.parameters[i].name);
    set(model.sinks[i], 0, right[0]);
  }
}

}  // namespace
}  // namespace amur::test
