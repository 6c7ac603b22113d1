// What cannot be exact is refused with the reason; the article's own table is not exact.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/growth/fixture.h"

namespace amur {
namespace {

using test::TestChunk;
using test::TestModel;

std::string refusal(GrowthOptions options, auto change) {
  ModelConfig config = test::small_config();
  change(config);
  try {
    const Growth growth(config, options);
    return "";
  } catch (const UsageError& e) {
    return e.what();
  }
}

void expect_refused(const std::string& reason, const GrowthOptions& options, auto change) {
  const std::string message = refusal(options, change);
  EXPECT_NE(message.find(reason), std::string::npos) << "'" << message << "' without " << reason;
}

TEST(GrowthRefusals, EachWithItsReason) {
  const auto as_is = [](ModelConfig&) {};
  const auto post = [](ModelConfig& c) { c.norm_position = NormPosition::post; };
  GrowthOptions odd;
  odd.hidden = 37;
  // W4; the norm behind the embeddings makes it hold for pre-norm models of this kind too.
  for (const auto& position : {NormPosition::pre, NormPosition::post}) {
    const auto at = [=](ModelConfig& c) { c.norm_position = position; };
    expect_refused("multiple of 24 (here 24 or 48)", odd, at);
    expect_refused("--old-statistics", odd, at);
  }
  GrowthOptions allowed = odd;
  allowed.old_statistics = true;
  EXPECT_EQ(refusal(allowed, post), "");
  EXPECT_EQ(refusal(odd, [](ModelConfig& c) { c.norm = NormKind::rms; }), "");
  EXPECT_EQ(refusal(odd, [](ModelConfig& c) { c.layers = 0; }), "");

  GrowthOptions deeper;
  deeper.layers = 4;
  EXPECT_EQ(refusal(deeper, post), "");
  expect_refused("has no layers", deeper, [](ModelConfig& c) { c.layers = 0; });
  GrowthOptions wide;
  wide.hidden = 48;
  expect_refused("sinusoidal", wide, [](ModelConfig& c) { c.position = PositionKind::sinusoidal; });
  GrowthOptions odd_head;
  odd_head.head_size = 7;
  expect_refused("pairs", odd_head, [](ModelConfig& c) { c.position = PositionKind::rotary; });

  GrowthOptions smaller;
  smaller.hidden = 12;
  smaller.heads = 2;
  smaller.head_size = 3;
  smaller.ffn = 20;
  smaller.layers = 1;
  smaller.vocab = 10;
  smaller.positions = 4;
  for (const char* option :
       {"--hidden", "--heads", "--head-size", "--ffn", "--layers", "--vocab", "--positions"})
    expect_refused(option, smaller, as_is);
}

// What the refusal spares: plain LayerNorm on copies and zeros.
TEST(GrowthRefusals, PlainLayerNormAtOtherWidthsIsAnotherFunction) {
  for (const NormPosition position : {NormPosition::pre, NormPosition::post}) {
    ModelConfig config = test::small_config();
    config.norm_position = position;
    TestModel from(config, DType::f64);
    GrowthOptions options;
    options.hidden = 37;
    options.old_statistics = true;
    TestModel to = test::grow(from, options);
    for (const ModelConstant& c : to.model.tower(0).constants())
      if (c.kind == ConstantKind::norm_statistics_width) *c.value = 37;
    const TestChunk chunk = test::probe_chunk(config);
    EXPECT_GT(test::cosine_difference(from.forward(chunk), 10, to.forward(chunk), 10), 1e-3);
  }
}

// The table of kexue.fm/archives/8444 for x2: every coordinate twice side by side, divided by
// sqrt(2); heads keep their number. `down_bias` is the factor of the second feed-forward bias,
// printed as 1/2.
double error_of_the_article(double eps, double down_bias) {
  ModelConfig config = test::small_config();
  config.norm_position = NormPosition::post;
  config.norm_eps = eps;
  config.projection = 0;
  ModelConfig wide = config;
  wide.hidden *= 2;
  wide.head_size *= 2;
  wide.ffn *= 2;
  TestModel from(config, DType::f64), to(wide, DType::f64);
  const double s = std::sqrt(0.5), q = std::pow(2.0, 0.25);
  for (Parameter& p : to.model.parameters()) {
    const Parameter& old = *from.model.parameters().find(p.name);
    const auto factor = [&](int64_t part) {
      const auto ends = [&](const char* suffix) { return p.name.ends_with(suffix); };
      if (ends("qkv.weight")) return part < 2 ? q / 2 : 0.5;
      if (ends("qkv.bias")) return part < 1 ? q * s : s;
      if (ends("output.weight")) return 0.5;
      if (ends("up.weight")) return s;
      if (ends("down.weight")) return s / 2;
      if (ends("up.bias") || p.kind == ParamKind::scalar) return 1.0;
      if (ends("down.bias")) return down_bias;
      return s;
    };
    const Shape shape = p.global_shape();
    for (int64_t i = 0; i < shape.elements(); ++i) {
      int64_t rest = i, source = 0, stride = 1, part = 0;
      for (size_t a = p.axes.size(); a-- > 0;) {
        const int64_t at = rest % p.axes[a].size;
        rest /= p.axes[a].size;
        source += stride * (p.axes[a].size == old.axes[a].size ? at : at / 2);
        stride *= old.axes[a].size;
        part = at;
      }
      test::set(p.value, i, factor(part) * test::get(old.value, source));
    }
  }
  const TestChunk chunk = test::probe_chunk(config);
  return test::cosine_difference(from.forward(chunk), 24, to.forward(chunk), 48);
}

TEST(GrowthRefusals, TheArticlesTable) {
  EXPECT_GT(error_of_the_article(1e-12, 0.5), 1e-3);              // as printed
  EXPECT_LT(error_of_the_article(1e-12, std::sqrt(0.5)), 1e-10);  // the bias put right
  EXPECT_GT(error_of_the_article(1e-3, std::sqrt(0.5)), 1e-6);    // but eps has not shrunk with
}

}  // namespace
}  // namespace amur
