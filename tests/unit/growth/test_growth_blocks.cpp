// Tensors that are grown in parts have the bits of those grown whole, and a part needs no more of
// the old tensor than it is large itself.
#include <gtest/gtest.h>

#include <algorithm>

#include "src/train/growth/grow_checkpoint.h"
#include "tests/unit/growth/fixture.h"

namespace amur {
namespace {

using test::TestModel;

// The part of a whole tensor that stands in a slab.
// `more`: elements of the old tensor that a part may need beyond its own.
void expect_parts_of_the_whole(const std::string& what, const ModelConfig& config,
                               const GrowthOptions& options, int64_t more = 0) {
  TestModel from(config, DType::f32);
  const Growth growth(config, options);
  TestModel to(growth, from);
  constexpr int64_t kElements = 60;
  size_t most = 0;
  for (Parameter& p : to.model.parameters()) {
    const GrowthRule rule = growth.rule(p, from.model.parameters());
    const Parameter* source = from.model.parameters().find(rule.source);
    ConstTensorView old;
    double rms = 0;
    if (source != nullptr) {
      old = source->value;
      rms = test::rms_by_boxes(old);
    }
    Tensor moment(p.value.shape(), DType::f32);
    test::widen_moment(growth, rule, source, old, 2, p, moment);
    const std::vector<GrowthBlock> blocks = growth.blocks(source, p, kElements);
    most = std::max(most, blocks.size());
    std::vector<int> seen(static_cast<size_t>(p.value.elements()), 0);
    int64_t next = 0;
    for (const GrowthBlock& block : blocks) {
      const int64_t row = block.to.count.elements() / std::max<int64_t>(block.to.count[0], 1);
      EXPECT_LE(block.to.count.elements(), std::max({kElements, row, p.fan_in()})) << p.name;
      EXPECT_LE(block.from.count.elements(), block.to.count.elements() + more)
          << what << " " << p.name;
      const Tensor part = source ? test::cut(old, block.from) : Tensor();
      Tensor values(block.to.count, DType::f32), state(block.to.count, DType::f32);
      growth.widen_moment_block(rule, source, block, part, 2, p, state);
      ASSERT_EQ(test::to_doubles(state), test::to_doubles(test::cut(moment, block.to)))
          << what << " " << p.name;
      if (growth.widen_block(rule, source, rms, block, part, p, values)) {
        ASSERT_EQ(test::to_doubles(values), test::to_doubles(test::cut(p.value, block.to)))
            << what << " " << p.name;
      }
      for_each_element(block.to, p.value.shape(), [&](int64_t, int64_t index) {
        EXPECT_EQ(index, next++) << p.name;
        ++seen[static_cast<size_t>(index)];
      });
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), p.value.elements()) << p.name;
  }
  EXPECT_GT(most, 20u) << what;
}

TEST(GrowthBlocks, AreThePartsOfTheWhole) {
  GrowthOptions options;
  options.hidden = 48;
  options.heads = 7;
  options.head_size = 12;
  options.ffn = 100;
  options.layers = 3;
  options.vocab = 50;
  options.positions = 20;
  options.seed = 3;
  ModelConfig config = test::small_config();
  for (const GrowthSplit split : {GrowthSplit::even, GrowthSplit::noise, GrowthSplit::uneven}) {
    options.split = split;
    expect_parts_of_the_whole(fmt::format("split {}", static_cast<int>(split)), config, options);
  }
  options.head_growth = HeadGrowth::copies;
  expect_parts_of_the_whole("copies inside heads", config, options);
  // Pairs begin again inside a head.
  config.position = PositionKind::rotary;
  expect_parts_of_the_whole("copies of pairs", config, options, config.head_size * config.hidden);
  options.head_growth = HeadGrowth::extend;
  config.norm_position = NormPosition::post;
  expect_parts_of_the_whole("post-norm", config, options);
  config.norm = NormKind::rms;
  config.activation = ActivationKind::swiglu;
  config.projection = 0;
  config.key_bias = true;
  options.hidden = 37;
  expect_parts_of_the_whole("rotary", config, options);
  options.head_size = 14;
  expect_parts_of_the_whole("rotary, another base", config, options);
}

TEST(GrowthLayers, StayOfTheirKindAndComeFromTheirKind) {
  ModelConfig config = test::small_config();
  config.position = PositionKind::rotary;
  GrowthOptions deeper;
  config.local_attention = 4;
  for (const int64_t every : {2, 3, 5})
    for (int64_t layers = 1; layers <= 9; ++layers)
      for (int64_t more = 1; more <= 9; ++more) {
        config.global_every = every;
        config.layers = layers;
        deeper.layers = layers + more;
        const Growth growth(config, deeper);
        int64_t before = -1;
        for (int64_t i = 0; i < layers; ++i) {
          const int64_t place = growth.place_of_layer(i);
          EXPECT_GT(place, before);
          EXPECT_LT(place, layers + more);
          EXPECT_EQ(growth.to().is_local(place), config.is_local(i));
          const Growth::LayerSource source = growth.source_of_layer(place);
          EXPECT_EQ(source.layer, i);
          EXPECT_FALSE(source.is_new);
          before = place;
        }
        int64_t fresh = 0;
        for (int64_t i = 0; i < layers + more; ++i) {
          const Growth::LayerSource source = growth.source_of_layer(i);
          fresh += source.is_new;
          EXPECT_TRUE(layers == 1 || growth.to().is_local(i) == config.is_local(source.layer));
        }
        EXPECT_EQ(fresh, more);
      }
}

TEST(GrowthBlocks, BoxesEndWhereCopiesBeginAgain) {
  const std::vector<int64_t> cuts = {3, 5};
  for (const Slab& box : boxes_of(Shape{7, 11, 2}, 2, 8, cuts)) {
    EXPECT_LE(box.count.elements(), 8);
    EXPECT_EQ(box.count[2], 2);
    EXPECT_EQ(box.first[1] / 5, (box.first[1] + box.count[1] - 1) / 5);
  }
  EXPECT_EQ(boxes_of(Shape{7, 11, 2}, 2, 7 * 11 * 2, cuts).size(), 1u);
  EXPECT_EQ(boxes_of(Shape{4, 100}, 1, 10).size(), 4u);  // rows stay whole
  EXPECT_EQ(boxes_of(Shape{}, 10).size(), 1u);
}

TEST(GrowthBlocks, AModelIsSharedByAsManyRanksAsItTakes) {
  EXPECT_EQ(ranks_to_share(10, 45, 4, 4), 1);
  EXPECT_EQ(ranks_to_share(10, 39, 4, 4), 2);
  EXPECT_EQ(ranks_to_share(10, 12, 4, 8), 4);
  EXPECT_EQ(ranks_to_share(10, 9, 4, 4), 0);
  EXPECT_EQ(ranks_to_share(10, 19, 3, 9), 3);  // two do not divide three
}

}  // namespace
}  // namespace amur
