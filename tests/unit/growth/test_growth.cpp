// The grown model computes what the old one does, in double and single precision, for every exact
// case; twice x2 is x4; gradients are shared as the optimizer state is.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/growth/fixture.h"

namespace amur {
namespace {

using test::TestChunk;
using test::TestModel;

struct Case {
  std::string name;
  GrowthOptions options;
  std::function<void(ModelConfig&)> change = [](ModelConfig&) {};
};

GrowthOptions sizes(int64_t hidden, int64_t heads = 0, int64_t head_size = 0, int64_t ffn = 0,
                    int64_t layers = 0) {
  GrowthOptions o;
  o.hidden = hidden;
  o.heads = heads;
  o.head_size = head_size;
  o.ffn = ffn;
  o.layers = layers;
  o.seed = 5;
  return o;
}

double bound_of(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : 5e-6;
}

void expect_same_function(const Case& c, GrowthSplit split, DType dtype) {
  ModelConfig config = test::small_config();
  c.change(config);
  GrowthOptions options = c.options;
  options.split = split;
  TestModel from(config, dtype);
  TestModel to = test::grow(from, options);
  const TestChunk chunk = test::probe_chunk(config);
  const std::string what =
      fmt::format("{}, split {}, {}", c.name, static_cast<int>(split), name_of(dtype));
  for (int tower = 0; tower < (from.model.separate_towers() ? 2 : 1); ++tower) {
    const std::vector<double> a = from.forward(chunk, tower), b = to.forward(chunk, tower);
    const int64_t width = from.model.embedding_size(), wide = to.model.embedding_size();
    EXPECT_LE(test::cosine_difference(a, width, b, wide), bound_of(dtype)) << what;
    if (width == wide)
      EXPECT_LE(test::largest_difference(test::unit_rows(a, width), test::unit_rows(b, wide)),
                bound_of(dtype))
          << what;
    else
      EXPECT_FALSE(options.projection) << what;
  }
}

void expect_same_function(const Case& c) {
  for (const DType dtype : {DType::f64, DType::f32})
    for (const GrowthSplit split : {GrowthSplit::even, GrowthSplit::noise, GrowthSplit::uneven})
      expect_same_function(c, split, dtype);
}

void post(ModelConfig& c) {
  c.norm_position = NormPosition::post;
}
void rms(ModelConfig& c) {
  c.norm = NormKind::rms;
}
void rotary(ModelConfig& c) {
  c.position = PositionKind::rotary;
}

// W1: widths times 3, heads times 3, any feed-forward width.
TEST(Growth, MultiplesOfTheWidth) {
  for (const NormPosition position : {NormPosition::pre, NormPosition::post})
    for (const NormKind norm : {NormKind::layer, NormKind::rms})
      expect_same_function({fmt::format("x3, {}-{}", position == NormPosition::pre ? "pre" : "post",
                                        norm == NormKind::rms ? "rms" : "layer"),
                            sizes(72, 12, 0, 101), [=](ModelConfig& c) {
                              c.norm_position = position;
                              c.norm = norm;
                            }});
}

// W2: any width under RMSNorm, and under LayerNorm with the statistics of the copies.
TEST(Growth, AnyWidth) {
  for (const int64_t hidden : {25, 31, 37, 47, 60, 71})
    for (const NormPosition position : {NormPosition::pre, NormPosition::post}) {
      const auto at = [=](ModelConfig& c) { c.norm_position = position; };
      expect_same_function(
          {fmt::format("rms {}", hidden), sizes(hidden, 6, 0, 61), [=](ModelConfig& c) {
             at(c);
             rms(c);
           }});
      GrowthOptions old_statistics = sizes(hidden, 6, 0, 61);
      old_statistics.old_statistics = true;
      expect_same_function({fmt::format("layer {}", hidden), old_statistics, at});
    }
}

// W3: head size by zero extension; rotary at the plain formula of the new size where that is a
// multiple, with another base where not.
TEST(Growth, HeadSize) {
  for (const int64_t head : {8, 10, 12, 18}) {
    expect_same_function({fmt::format("head {}", head), sizes(0, 0, head), post});
    expect_same_function({fmt::format("rotary head {}", head), sizes(48, 0, head), rotary});
    expect_same_function(
        {fmt::format("key bias, rotary head {}", head), sizes(48, 7, head), [](ModelConfig& c) {
           rotary(c);
           c.key_bias = true;
         }});
  }
  Growth growth(
      [] {
        ModelConfig c = test::small_config();
        rotary(c);
        return c;
      }(),
      sizes(0, 0, 12));
  EXPECT_EQ(growth.to().rotary_base, growth.from().rotary_base);
}

// The article's recipe for rotary positions: pairs repeated in place under the formula of the new
// size. It must be seen to fail.
TEST(Growth, RepeatedPairsAreAnotherFunction) {
  ModelConfig config = test::small_config();
  rotary(config);
  TestModel from(config, DType::f64);
  const Growth growth(config, sizes(0, 0, 12));
  TestModel to(growth, from);
  for (Parameter& p : to.model.parameters()) {
    if (p.axes.size() != 4) continue;  // query, key and value
    const Parameter& old = *from.model.parameters().find(p.name);
    const int64_t half = 6, old_half = 3, columns = config.hidden;
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t head = 0; head < config.heads; ++head)
        for (int64_t k = 0; k < 12; ++k) {
          const int64_t source = k % half / 2 + k / half * old_half;
          for (int64_t i = 0; i < columns; ++i)
            test::set(p.value, ((part * config.heads + head) * 12 + k) * columns + i,
                      std::pow(0.5, 0.25) *
                          test::get(old.value,
                                    ((part * config.heads + head) * 6 + source) * columns + i));
        }
  }
  const TestChunk chunk = test::probe_chunk(config);
  EXPECT_GT(test::cosine_difference(from.forward(chunk), 10, to.forward(chunk), 10), 1e-4);
}

TEST(Growth, HeadsFeedForwardAndCombinations) {
  expect_same_function({"heads 4 to 7", sizes(0, 7)});
  expect_same_function({"heads 4 to 7, rotary, post", sizes(48, 7, 0, 55), [](ModelConfig& c) {
                          rotary(c);
                          post(c);
                        }});
  expect_same_function({"ffn 40 to 41", sizes(0, 0, 0, 41)});
  for (const ActivationKind gated : {ActivationKind::swiglu, ActivationKind::geglu})
    expect_same_function({"gated", sizes(48, 8, 0, 90), [=](ModelConfig& c) {
                            c.activation = gated;
                            c.bias = false;
                          }});
  expect_same_function({"everything", sizes(72, 9, 8, 100, 5), [](ModelConfig& c) {
                          rotary(c);
                          c.pooling = PoolingKind::cls;
                        }});
  expect_same_function(
      {"two towers", sizes(48, 8), [](ModelConfig& c) { c.towers = TowerKind::separate; }});
}

TEST(Growth, DepthOfPreNorm) {
  for (const int64_t layers : {3, 4, 7})
    expect_same_function({fmt::format("{} layers", layers), sizes(0, 0, 0, 0, layers)});
  expect_same_function({"one layer to two, rms", sizes(30, 0, 0, 0, 2), [](ModelConfig& c) {
                          rms(c);
                          c.layers = 1;
                        }});
  // New layers can move: Tiger's step is a share of the RMS, which is 0 there.
  TestModel from(test::small_config(), DType::f64);
  TestModel to = test::grow(from, sizes(0, 0, 0, 0, 4));
  int silent = 0;
  for (const Parameter& p : to.model.parameters()) {
    double largest = 0;
    for (const double x : test::to_doubles(p.value)) largest = std::max(largest, std::abs(x));
    if (p.kind != ParamKind::weight || largest > 0) continue;
    ++silent;
    EXPECT_GT(p.rms_floor, 0) << p.name;
  }
  EXPECT_EQ(silent, 4);
}

TEST(Growth, StaticModels) {
  const auto bare = [](ModelConfig& c) { c.layers = 0; };
  for (const int64_t hidden : {25, 48, 71}) {
    expect_same_function({"static", sizes(hidden), bare});
    expect_same_function({"static without projection", sizes(hidden), [](ModelConfig& c) {
                            c.layers = 0;
                            c.projection = 0;
                          }});
  }
}

TEST(Growth, WithoutProjectionAFixedAverageKeepsTheEmbedding) {
  const auto none = [](ModelConfig& c) { c.projection = 0; };
  expect_same_function({"average", sizes(72), none});
  GrowthOptions wide = sizes(72);
  wide.projection = false;
  expect_same_function({"cosines alone", wide, none});

  ModelConfig config = test::small_config();
  none(config);
  TestModel from(config, DType::f64);
  TestModel to = test::grow(from, sizes(48));
  EXPECT_EQ(to.model.embedding_size(), 24);
  EXPECT_TRUE(to.model.parameters().find("encoder.projection.weight")->frozen);
}

TEST(Growth, VocabularyAndPositions) {
  GrowthOptions options;
  options.vocab = 50;
  options.positions = 20;
  expect_same_function({"more rows", options});
  TestModel from(test::small_config(), DType::f64);
  TestModel to = test::grow(from, options);
  // New rows are not alike, nor 0.
  const ConstTensorView table = to.model.parameters().find("encoder.embeddings.tokens")->value;
  EXPECT_NE(test::get(table, 40 * 24), test::get(table, 41 * 24));
  EXPECT_NE(test::get(table, 40 * 24), 0);
}

// W9.
TEST(Growth, TwiceTwoIsFour) {
  TestModel from(test::small_config(), DType::f64);
  GrowthOptions once = sizes(48, 8, 0, 80), again = sizes(96, 16, 0, 160);
  once.split = again.split = GrowthSplit::even;
  TestModel two = test::grow(from, once);
  TestModel four = test::grow(two, again), direct = test::grow(from, again);
  for (size_t i = 0; i < four.model.parameters().size(); ++i) {
    const Parameter &a = four.model.parameters()[i], &b = direct.model.parameters()[i];
    EXPECT_EQ(test::to_doubles(a.value), test::to_doubles(b.value)) << a.name;
    EXPECT_EQ(a.decay_multiplier, b.decay_multiplier) << a.name;
  }
  EXPECT_EQ(four.model.constants(), direct.model.constants());
}

// W6: momenta are means of gradients, so a widened one is the gradient of the wide model.
TEST(Growth, WidenedMomentumIsTheGradientOfTheWideModel) {
  const auto check = [](const std::string& what, GrowthOptions options, bool whole, auto change) {
    ModelConfig config = test::small_config();
    change(config);
    options.split = GrowthSplit::even;
    TestModel from(config, DType::f64);
    const Growth growth(config, options);
    TestModel to(growth, from);
    const TestChunk chunk = test::probe_chunk(config);
    from.backward(chunk);
    to.backward(chunk);
    int compared = 0;
    for (size_t i = 0; i < to.model.parameters().size(); ++i) {
      Parameter& p = to.model.parameters()[i];
      if (p.kind == ParamKind::scalar || p.frozen) continue;
      const GrowthRule rule = growth.rule(p, from.model.parameters());
      const Parameter* source = from.model.parameters().find(rule.source);
      ConstTensorView old;
      for (size_t k = 0; k < from.sinks.size(); ++k)
        if (&from.model.parameters()[k] == source) old = from.sinks[k];
      Tensor lifted(p.value.shape(), DType::f64);
      growth.widen_moment(rule, source, old, 1, p, lifted);
      const std::vector<double> a = test::to_doubles(lifted), b = test::to_doubles(to.sinks[i]);
      for (size_t k = 0; k < a.size(); ++k) {
        if (!whole && a[k] == 0) continue;  // of coordinates that are new: not known
        ASSERT_NEAR(a[k], b[k], 1e-12 * (1 + std::abs(b[k]))) << what << " " << p.name;
        ++compared;
      }
      // The second moment takes the square of the same shares.
      Tensor squares(p.value.shape(), DType::f64), old_squares(old.shape(), DType::f64);
      for (int64_t k = 0; k < old.elements(); ++k)
        test::set(old_squares, k, std::pow(test::get(old, k), 2));
      growth.widen_moment(rule, source, old_squares, 2, p, squares);
      for (size_t k = 0; k < a.size(); ++k)
        ASSERT_NEAR(test::get(squares, static_cast<int64_t>(k)), a[k] * a[k],
                    1e-12 * (1 + a[k] * a[k]))
            << what << " " << p.name;
    }
    EXPECT_GT(compared, 1000) << what;
  };
  const auto as_is = [](ModelConfig&) {};
  check("x2", sizes(48, 8, 0, 80), true, as_is);
  check("x2 post", sizes(48, 8, 0, 80), true, post);
  check("heads 7, ffn 55", sizes(48, 7, 0, 55), true, as_is);
  check("average", sizes(72), true, [](ModelConfig& c) { c.projection = 0; });
  check("rms 37", sizes(37, 8), false, rms);
  check("head 12", sizes(48, 0, 12), false, rotary);
  GrowthOptions old_statistics = sizes(37);
  old_statistics.old_statistics = true;
  check("old statistics", old_statistics, false, as_is);
}

// Numbers are functions of seed, name and place alone.
TEST(Growth, NoiseBelongsToTheSeed) {
  TestModel from(test::small_config(), DType::f32);
  GrowthOptions options = sizes(48, 8, 0, 80), other = options;
  other.seed = 6;
  TestModel a = test::grow(from, options), b = test::grow(from, options),
            c = test::grow(from, other);
  const auto values = [](TestModel& m) {
    return test::to_doubles(
        m.model.parameters().find("encoder.layers.0.feed_forward.up.weight")->value);
  };
  EXPECT_EQ(values(a), values(b));
  EXPECT_NE(values(a), values(c));
}

}  // namespace
}  // namespace amur
