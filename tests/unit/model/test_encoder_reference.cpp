// The encoder against the published formulas.
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "tests/unit/model/fixture.h"
#include "tests/unit/model/reference_encoder.h"

namespace amur::test {
namespace {

using EmbeddingReference = std::vector<double> (*)(const ModelConfig&, ParameterSet&,
                                                   const std::string&, const std::vector<int32_t>&);

ModelConfig bert() {
  ModelConfig config = tiny_config();
  config.norm_position = NormPosition::post;
  config.position = PositionKind::learned;
  config.activation = ActivationKind::gelu;
  return config;
}

ModelConfig modernbert() {
  ModelConfig config = tiny_config();
  config.norm_position = NormPosition::pre;
  config.position = PositionKind::rotary;
  config.activation = ActivationKind::geglu;
  config.rotary_base = 160;
  config.bias = false;
  return config;
}

// Relative error over all texts of the chunk.
double reference_error(const ModelConfig& config, DType dtype, EmbeddingReference reference) {
  const TestChunk chunk = tiny_chunk(config);
  TestEncoder model(config, dtype);
  const Tensor h = model.forward(chunk, false, false);
  TestEncoder exact(config, DType::f64);
  std::vector<double> expected;
  for (int64_t s = 0; s < chunk.view().sequences(); ++s) {
    const auto row = reference(config, exact.parameters, "encoder", chunk.tokens_of(s));
    expected.insert(expected.end(), row.begin(), row.end());
  }
  return relative_error(to_doubles(h), expected);
}

class EncoderReference : public testing::TestWithParam<std::tuple<PoolingKind, int64_t, bool>> {
 protected:
  ModelConfig with_options(ModelConfig config) const {
    std::tie(config.pooling, config.projection, config.key_bias) = GetParam();
    if (!config.bias) config.key_bias = false;
    config.token_type = config.key_bias;  // as BERT has both
    return config;
  }
};

TEST_P(EncoderReference, Bert) {
  const ModelConfig config = with_options(bert());
  EXPECT_LT(reference_error(config, DType::f64, bert_embedding), 1e-14);
  EXPECT_LT(reference_error(config, DType::f32, bert_embedding), 2e-6);
  EXPECT_LT(reference_error(config, DType::bf16, bert_embedding), 2e-2);
}

TEST_P(EncoderReference, ModernBert) {
  const ModelConfig config = with_options(modernbert());
  EXPECT_LT(reference_error(config, DType::f64, modernbert_embedding), 1e-14);
  EXPECT_LT(reference_error(config, DType::f32, modernbert_embedding), 2e-6);
  EXPECT_LT(reference_error(config, DType::bf16, modernbert_embedding), 2e-2);
}

ModelConfig with_local_layers() {
  ModelConfig config = modernbert();
  config.layers = 3;
  config.global_every = 2;
  config.local_attention = 3;  // one token on either side; texts have up to 6
  config.local_rotary_base = 10;
  return config;
}

TEST_P(EncoderReference, ModernBertWithLocalLayers) {
  const ModelConfig config = with_options(with_local_layers());
  EXPECT_LT(reference_error(config, DType::f64, modernbert_embedding), 1e-14);
  EXPECT_LT(reference_error(config, DType::f32, modernbert_embedding), 2e-6);
  EXPECT_LT(reference_error(config, DType::bf16, modernbert_embedding), 2e-2);
}

INSTANTIATE_TEST_SUITE_P(Options, EncoderReference,
                         testing::Combine(testing::Values(PoolingKind::mean, PoolingKind::cls),
                                          testing::Values(0, 5), testing::Bool()));

// How far a change of options moves the embeddings.
double moved_by(const ModelConfig& base, const std::function<void(ModelConfig&)>& change) {
  const TestChunk chunk = tiny_chunk(base);
  TestEncoder before(base, DType::f64);
  const std::vector<double> h = to_doubles(before.forward(chunk, false, false));
  ModelConfig config = base;
  change(config);
  TestEncoder other(config, DType::f64);
  return relative_error(to_doubles(other.forward(chunk, false, false)), h);
}

// Each choice that tells the classes apart moves the embedding by far more than the bound.
TEST(EncoderReferenceControl, OtherOptionsGiveOtherEmbeddings) {
  const auto moved = [](auto change) { return moved_by(bert(), change); };
  EXPECT_GT(moved([](ModelConfig& c) { c.norm_position = NormPosition::pre; }), 1e-2);
  EXPECT_GT(moved([](ModelConfig& c) { c.norm = NormKind::rms; }), 1e-2);
  EXPECT_GT(moved([](ModelConfig& c) { c.activation = ActivationKind::gelu_tanh; }), 1e-7);
  EXPECT_GT(moved([](ModelConfig& c) { c.position = PositionKind::rotary; }), 1e-2);
  EXPECT_GT(moved([](ModelConfig& c) { c.position = PositionKind::sinusoidal; }), 1e-2);
  EXPECT_GT(moved([](ModelConfig& c) { c.norm_eps = 2e-3; }), 1e-5);
  EXPECT_GT(moved([](ModelConfig& c) { c.token_type = true; }), 1e-2);
}

TEST(EncoderReferenceControl, OtherLocalLayersGiveOtherEmbeddings) {
  const auto moved = [](auto change) { return moved_by(with_local_layers(), change); };
  EXPECT_GT(moved([](ModelConfig& c) { c.local_attention = 0; }), 1e-2);
  EXPECT_GT(moved([](ModelConfig& c) { c.local_attention = 4; }), 1e-3);
  EXPECT_GT(moved([](ModelConfig& c) { c.global_every = 3; }), 1e-3);
  EXPECT_GT(moved([](ModelConfig& c) { c.local_rotary_base = 0; }), 1e-3);
  EXPECT_GT(moved([](ModelConfig& c) { std::swap(c.local_rotary_base, c.rotary_base); }), 1e-3);
  // A window that holds every text is none.
  EXPECT_EQ(
      moved_by(modernbert(), [](ModelConfig& c) { c.local_attention = 10, c.global_every = 2; }),
      0);
}

}  // namespace
}  // namespace amur::test
