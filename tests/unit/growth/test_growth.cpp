// The grown model computes what the old one does, in double and single precision, for every exact
// case, on one rank and, on four, as two tensor-parallel pairs with texts of their own; twice x2 is
// x4; gradients are shared as the optimizer state is.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "comm/process_grid.h"
#include "kernels/elementwise.h"
#include "src/core/hash.h"
#include "src/train/checkpoint/checkpoint.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/checkpoint/fixture.h"
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

class GrowthFunction : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const int tp = test_runtime().size() == 4 ? 2 : 1;
    grid_ =
        std::make_unique<ProcessGrid>(test_runtime(), GridShape{test_runtime().size() / tp, tp});
  }
  static void TearDownTestSuite() {
    for (const auto& [dtype, error] : largest_)
      RecordProperty(fmt::format("largest_difference_{}", name_of(dtype)),
                     fmt::format("{:.1e}", error));
    grid_.reset();
  }

  static void expect_same_function(const Case& c, GrowthSplit split, DType dtype);
  static void expect_same_function(const Case& c) {
    for (const DType dtype : {DType::f64, DType::f32})
      for (const GrowthSplit split : {GrowthSplit::even, GrowthSplit::noise, GrowthSplit::uneven})
        if (split == GrowthSplit::noise || grid_->tp().size() == 1)
          expect_same_function(c, split, dtype);
  }

  static std::unique_ptr<ProcessGrid> grid_;
  static std::map<DType, double> largest_;  // of all comparisons
};
std::unique_ptr<ProcessGrid> GrowthFunction::grid_;
std::map<DType, double> GrowthFunction::largest_;

void GrowthFunction::expect_same_function(const Case& c, GrowthSplit split, DType dtype) {
  ModelConfig config = test::small_config();
  c.change(config);
  GrowthOptions options = c.options;
  options.split = split;
  TestModel from(config, dtype);
  TestModel grown = test::grow(from, options);
  TestModel shared(grown, grid_->tp());
  TestModel& to = grid_->tp().size() > 1 ? shared : grown;
  const TestChunk chunk = test::probe_chunk(config, grid_->dp_rank());
  const std::string what =
      fmt::format("{}, split {}, {}", c.name, static_cast<int>(split), name_of(dtype));
  for (int tower = 0; tower < (from.model.separate_towers() ? 2 : 1); ++tower) {
    const std::vector<double> a = from.forward(chunk, tower), b = to.forward(chunk, tower);
    const int64_t width = from.model.embedding_size(), wide = to.model.embedding_size();
    const double cosines = test::cosine_difference(a, width, b, wide);
    EXPECT_LE(cosines, bound_of(dtype)) << what;
    largest_[dtype] = std::max(largest_[dtype], cosines);
    if (width == wide) {
      const double elements =
          test::largest_difference(test::unit_rows(a, width), test::unit_rows(b, wide));
      EXPECT_LE(elements, bound_of(dtype)) << what;
      largest_[dtype] = std::max(largest_[dtype], elements);
    } else {
      EXPECT_FALSE(options.projection) << what;
    }
  }
}

void post(ModelConfig& c) {
  c.norm_position = NormPosition::post;
  c.token_type = true;
}
void rms(ModelConfig& c) {
  c.norm = NormKind::rms;
}
void rotary(ModelConfig& c) {
  c.position = PositionKind::rotary;
}

// W1: widths times 3, heads times 3, any feed-forward width.
TEST_F(GrowthFunction, MultiplesOfTheWidth) {
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
TEST_F(GrowthFunction, AnyWidth) {
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

ModelConfig rotary_config() {
  ModelConfig c = test::small_config();
  rotary(c);
  return c;
}

GrowthOptions by_copies(GrowthOptions options) {
  options.head_growth = HeadGrowth::copies;
  return options;
}

// W3: head size by zero extension; rotary at the plain formula of the new size where that is a
// multiple, with another base where not.
TEST_F(GrowthFunction, HeadSizeByExtension) {
  for (const int64_t head : {8, 10, 12, 18}) {
    expect_same_function({fmt::format("head {}", head), sizes(0, 0, head), post});
    expect_same_function({fmt::format("rotary head {}", head), sizes(48, 0, head), rotary});
    expect_same_function(
        {fmt::format("key bias, rotary head {}", head), sizes(48, 7, head), [](ModelConfig& c) {
           rotary(c);
           c.key_bias = true;
         }});
  }
  const Growth growth(rotary_config(), sizes(0, 0, 12));
  EXPECT_EQ(growth.to().rotary_base, growth.from().rotary_base);
  EXPECT_EQ(growth.to().rotary_size, 0);
}

// W3: head size by copies, of any ratio; rotary with as many frequencies as before.
TEST_F(GrowthFunction, HeadSizeByCopies) {
  for (const int64_t head : {7, 10, 12, 18})
    expect_same_function({fmt::format("head {} by copies", head), by_copies(sizes(0, 0, head))});
  for (const int64_t head : {8, 12, 14, 18})
    expect_same_function({fmt::format("rotary head {} by copies", head),
                          by_copies(sizes(48, 7, head)), [](ModelConfig& c) {
                            rotary(c);
                            c.key_bias = true;
                            post(c);
                          }});
  EXPECT_EQ(Growth(rotary_config(), by_copies(sizes(0, 0, 12))).to().rotary_size, 6);
  // Heads that repeat their frequencies grow on, both ways.
  for (const int64_t head : {12, 14, 20})
    for (const HeadGrowth way : {HeadGrowth::extend, HeadGrowth::copies}) {
      GrowthOptions options = sizes(0, 0, head);
      options.head_growth = way;
      expect_same_function(
          {fmt::format("rotary head 10 of period 6 to {}", head), options, [](ModelConfig& c) {
             rotary(c);
             c.head_size = 10;
             c.rotary_size = 6;
           }});
    }
}

// The article's recipe for rotary positions: pairs repeated in place under the formula of the new
// size. It must be seen to fail, and the same numbers with the old frequencies to be exact.
TEST_F(GrowthFunction, RepeatedPairsAreAnotherFunction) {
  ModelConfig config = rotary_config();
  config.max_length = 32;
  TestModel from(config, DType::f64);
  // Attention that looks at few tokens, as trained ones do.
  for (Parameter& p : from.model.parameters())
    if (p.axes.size() == 4)
      for (int64_t i = 0; i < p.value.elements() / 3 * 2; ++i)
        test::set(p.value, i, 3 * test::get(p.value, i));
  const TestChunk chunk({{1, 32}, {2, 27}, {3, 32}, {4, 9}, {5, 19}}, config.vocab);
  const auto copied = by_copies(sizes(0, 0, 12));
  TestModel exact = test::grow(from, copied);
  ModelConfig wide = exact.config.model;
  wide.rotary_size = 0;
  TestModel article(wide, DType::f64);
  article.model.assign_from(exact.model);
  const std::vector<double> before = from.forward(chunk);
  EXPECT_LE(test::cosine_difference(before, 10, exact.forward(chunk), 10), 1e-12);
  EXPECT_GT(test::cosine_difference(before, 10, article.forward(chunk), 10), 1e-2);
}

TEST_F(GrowthFunction, HeadsFeedForwardAndCombinations) {
  expect_same_function({"heads 4 to 7", sizes(0, 7)});
  expect_same_function({"heads 4 to 7, rotary, post", sizes(48, 7, 0, 55), [](ModelConfig& c) {
                          rotary(c);
                          post(c);
                        }});
  expect_same_function({"ffn 40 to 41", sizes(0, 0, 0, 41)});
  for (const ActivationKind activation :
       {ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu,
        ActivationKind::swiglu, ActivationKind::geglu})
    for (const bool bias : {true, false})
      expect_same_function(
          {fmt::format("activation {}, bias {}", static_cast<int>(activation), bias),
           sizes(48, 8, 0, 90), [=](ModelConfig& c) {
             c.activation = activation;
             c.bias = bias;
           }});
  // The width inside attention does not follow that of the model, nor the other way.
  expect_same_function({"inner width 24 to 88", sizes(24, 8, 11)});
  expect_same_function({"inner width 24 beside 72", sizes(72)});
  for (const HeadGrowth way : {HeadGrowth::extend, HeadGrowth::copies}) {
    GrowthOptions all = sizes(72, 9, 8, 100, 5);
    all.head_growth = way;
    all.vocab = 50;
    all.positions = 20;
    expect_same_function({"everything", all, [](ModelConfig& c) {
                            rotary(c);
                            c.pooling = PoolingKind::cls;
                          }});
    expect_same_function({"everything, post", all, [](ModelConfig& c) {
                            post(c);
                            c.activation = ActivationKind::geglu;
                          }});
    all.hidden = 61;
    expect_same_function({"everything, rms, separate towers", all, [](ModelConfig& c) {
                            rms(c);
                            c.towers = TowerKind::separate;
                          }});
  }
  expect_same_function(
      {"two towers", sizes(48, 8), [](ModelConfig& c) { c.towers = TowerKind::separate; }});
}

TEST_F(GrowthFunction, DepthOfPreNorm) {
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

// Layers that see a window between those that see the whole text: each stays of its kind.
TEST_F(GrowthFunction, LocalLayers) {
  const auto local = [](ModelConfig& c) {
    rotary(c);
    c.layers = 4;
    c.local_attention = 4;
    c.local_rotary_base = 30;  // the others have 10000
  };
  for (const int64_t layers : {5, 7, 11})
    expect_same_function(
        {fmt::format("local, {} layers", layers), sizes(0, 0, 0, 0, layers), local});
  for (const HeadGrowth way : {HeadGrowth::extend, HeadGrowth::copies}) {
    GrowthOptions all = sizes(72, 9, 8, 100, 8);  // a head of 6 becomes one of 8: other bases
    all.head_growth = way;
    expect_same_function({"local, everything", all, local});
  }
  // With one layer in two global in place of one in three, it is another function.
  ModelConfig config = test::small_config();
  local(config);
  TestModel from(config, DType::f64);
  TestModel exact = test::grow(from, sizes(0, 0, 0, 0, 7));
  ModelConfig other = exact.config.model;
  other.global_every = 2;
  TestModel mixed(other, DType::f64);
  mixed.model.assign_from(exact.model);
  const TestChunk chunk = test::probe_chunk(config);
  const std::vector<double> before = from.forward(chunk);
  EXPECT_LE(test::cosine_difference(before, 10, exact.forward(chunk), 10), 1e-12);
  EXPECT_GT(test::cosine_difference(before, 10, mixed.forward(chunk), 10), 1e-4);
}

// A new layer adds nothing and its norms are gated away: the very same numbers.
TEST_F(GrowthFunction, DepthOfPostNorm) {
  for (const int64_t layers : {3, 4, 7})
    expect_same_function({fmt::format("post, {} layers", layers), sizes(0, 0, 0, 0, layers), post});
  ModelConfig config = test::small_config();
  post(config);
  TestModel from(config, DType::f64);
  TestModel once = test::grow(from, sizes(0, 0, 0, 0, 3));
  TestModel twice = test::grow(once, sizes(0, 0, 0, 0, 5));
  const TestChunk chunk = test::probe_chunk(config);
  EXPECT_EQ(from.forward(chunk), once.forward(chunk));
  EXPECT_EQ(from.forward(chunk), twice.forward(chunk));
  // Old norms stay as they were; those of new layers learn how much of them is wanted.
  int fixed = 0, closed = 0;
  for (const Parameter& p : twice.model.parameters()) {
    if (!p.name.ends_with(".gate")) continue;
    const double gate = test::get(p.value, 0);
    EXPECT_EQ(p.frozen, gate == 1) << p.name;
    (gate == 1 ? fixed : closed) += 1;
  }
  EXPECT_EQ(fixed, 2 * 2);
  EXPECT_EQ(closed, 2 * 3);
  // Without the gates a norm follows a norm, whose eps counts twice.
  for (Parameter& p : twice.model.parameters())
    if (p.name.ends_with(".gate")) test::set(p.value, 0, 1);
  EXPECT_GT(test::largest_difference(from.forward(chunk), twice.forward(chunk)), 1e-5);
}

TEST_F(GrowthFunction, StaticModels) {
  const auto bare = [](ModelConfig& c) { c.layers = 0; };
  for (const int64_t hidden : {25, 48, 71}) {
    expect_same_function({"static", sizes(hidden), bare});
    expect_same_function({"static without projection", sizes(hidden), [](ModelConfig& c) {
                            c.layers = 0;
                            c.projection = 0;
                          }});
  }
}

TEST_F(GrowthFunction, WithoutProjectionAFixedAverageKeepsTheEmbedding) {
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

TEST_F(GrowthFunction, VocabularyAndPositions) {
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
TEST_F(GrowthFunction, TwiceTwoIsFour) {
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
  // The optimizer's state, too.
  const Growth small_to_two(from.config.model, once), two_to_four(two.config.model, again),
      small_to_four(from.config.model, again);
  const auto lifted = [](const Growth& growth, TestModel& old, ConstTensorView state, int order,
                         const Parameter& to) {
    const GrowthRule rule = growth.rule(to, old.model.parameters());
    Tensor grown(to.value.shape(), DType::f64);
    test::widen_moment(growth, rule, old.model.parameters().find(rule.source), state, order, to,
                       grown);
    return grown;
  };
  for (size_t i = 0; i < four.model.parameters().size(); ++i) {
    const Parameter &a = from.model.parameters()[i], &b = two.model.parameters()[i],
                    &c = four.model.parameters()[i];
    const Tensor state = test::random_tensor(a.value.shape(), DType::f64, i);
    for (const int order : {1, 2})
      EXPECT_EQ(test::to_doubles(lifted(two_to_four, two,
                                        lifted(small_to_two, from, state, order, b), order, c)),
                test::to_doubles(lifted(small_to_four, from, state, order, c)))
          << a.name;
  }
}

// W6: momenta are means of gradients, so a widened one is the gradient of the wide model.
TEST_F(GrowthFunction, WidenedMomentumIsTheGradientOfTheWideModel) {
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
      test::widen_moment(growth, rule, source, old, 1, p, lifted);
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
      test::widen_moment(growth, rule, source, old_squares, 2, p, squares);
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
  check("head 14 by copies", by_copies(sizes(48, 7, 14)), true, [](ModelConfig& c) {
    rotary(c);
    c.key_bias = true;
  });
  GrowthOptions old_statistics = sizes(37);
  old_statistics.old_statistics = true;
  check("old statistics", old_statistics, false, as_is);
}

// A matrix whose inputs are split over r copies has 1/r of its RMS, which Tiger's step follows; its
// decay is multiplied by r and its RMS floor divided.
TEST_F(GrowthFunction, DecayAndFloorFollowTheFanIn) {
  TestModel from(test::small_config(), DType::f64);
  for (Parameter& p : from.model.parameters()) {
    p.learning_rate_multiplier = 3;
    p.decay_multiplier = 0.5;
    p.rms_floor = 0.3;
  }
  GrowthOptions options = sizes(48, 12, 0, 160);
  options.split = GrowthSplit::even;
  TestModel to = test::grow(from, options);
  for (const Parameter& p : to.model.parameters()) {
    double r = 1;
    if (p.name.ends_with("qkv.weight") || p.name.ends_with("up.weight") ||
        p.name.ends_with("projection.weight"))
      r = 2;
    if (p.name.ends_with("output.weight")) r = 3;
    if (p.name.ends_with("down.weight")) r = 4;
    EXPECT_EQ(p.learning_rate_multiplier, 3) << p.name;
    EXPECT_DOUBLE_EQ(p.decay_multiplier, 0.5 * r) << p.name;
    EXPECT_DOUBLE_EQ(p.rms_floor, 0.3 / r) << p.name;
    if (p.kind != ParamKind::weight) continue;
    const double before = root_mean_square(from.model.parameters().find(p.name)->value);
    EXPECT_NEAR(root_mean_square(p.value) * r, before, 1e-15) << p.name;
  }
}

TEST_F(GrowthFunction, WarnsOfWidthsThatKernelsDislike) {
  ModelConfig config = test::small_config();
  config.hidden = 64;
  config.head_size = 16;
  config.ffn = 256;
  const auto warnings = [&](const GrowthOptions& options) {
    return fmt::format("{}", fmt::join(Growth(config, options).warnings(), "; "));
  };
  EXPECT_EQ(warnings(sizes(128, 8, 24, 320)), "");
  EXPECT_NE(warnings(sizes(0, 0, 0, 300)).find("ffn 300 is no multiple of 64"), std::string::npos);
  EXPECT_NE(warnings(sizes(0, 0, 20)).find("head size 20 is no multiple of 8"), std::string::npos);
  config.norm = NormKind::rms;
  EXPECT_NE(warnings(sizes(72)).find("hidden 72 is no multiple of 64"), std::string::npos);
}

// A checkpoint saved by ranks that share the model and one saved whole are widened to the same
// bits, momentum included.
TEST_F(GrowthFunction, SavedSharedOrWholeIsTheSame) {
  ProcessGrid flat(test_runtime(), {test_runtime().size(), 1});
  const test::ScratchFolder folder(&flat.world());
  TestModel whole(test::small_config(), DType::f32), shared(whole, grid_->tp());
  const auto save = [&](TestModel& m, ProcessGrid& grid, const std::string& path) {
    const auto optimizer = Optimizer::make({}, m.model.parameters(), 0.002, m.model.tp());
    for (const OptimizerSlot& slot : optimizer->slots()) {
      if (slot.per_row) continue;
      const Parameter& p = *slot.parameter;
      const RandomKey key = RandomKey(9).fold(fnv1a(p.name));
      for_each_element(slab_of(p, m.model.tp_rank(), m.model.tp_size()), p.global_shape(),
                       [&](int64_t i, int64_t at) {
                         test::set(slot.value, i, key.normal(static_cast<uint64_t>(at)));
                       });
    }
    Checkpoint::save(path, test::example_info(), m.model.parameters(), optimizer->slots(), 0, grid);
  };
  save(whole, flat, folder.file("whole.h5"));
  save(shared, *grid_, folder.file("shared.h5"));

  const auto widened = [&](const std::string& path) {
    TestModel from(test::small_config(), DType::f32);
    for (Parameter& p : from.model.parameters()) fill_zero(p.value);
    const auto optimizer = Optimizer::make({}, from.model.parameters());
    const std::vector<OptimizerSlot> slots = optimizer->slots();
    Checkpoint::load(path, from.model.parameters(), slots, flat);
    const Growth growth(from.config.model, sizes(72, 7, 8, 90, 3));
    TestModel to(growth, from);
    std::vector<std::vector<double>> values;
    for (const Parameter& p : to.model.parameters()) {
      values.push_back(test::to_doubles(p.value));
      const GrowthRule rule = growth.rule(p, from.model.parameters());
      const Parameter* source = from.model.parameters().find(rule.source);
      for (const OptimizerSlot& slot : slots) {
        if (slot.parameter != source || slot.per_row) continue;
        Tensor moment(p.value.shape(), DType::f32);
        test::widen_moment(growth, rule, source, slot.value, 1, p, moment);
        values.push_back(test::to_doubles(moment));
      }
    }
    return values;
  };
  const auto a = widened(folder.file("whole.h5")), b = widened(folder.file("shared.h5"));
  EXPECT_GT(a.size(), 40u);
  EXPECT_EQ(a, b);
}

// Numbers are functions of seed, name and place alone.
TEST_F(GrowthFunction, NoiseBelongsToTheSeed) {
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
