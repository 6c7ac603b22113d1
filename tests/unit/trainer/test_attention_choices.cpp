#include "src/train/attention_choices.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace amur {
namespace {

Config encoder() {
  Config c;
  c.model.layers = 2;
  c.model.hidden = 384;
  c.model.heads = 12;
  c.model.max_length = 200;
  c.train.precision = Precision::bf16;
  return c;
}

std::vector<int64_t> lengths_of(const std::vector<AttentionKind>& kinds,
                                AttentionDirection direction) {
  std::vector<int64_t> lengths;
  for (const AttentionKind& kind : kinds)
    if (kind.direction == direction) lengths.push_back(kind.longest);
  return lengths;
}

TEST(AttentionChoices, BucketsHoldTheirSizesAndAreNotMuchLarger) {
  for (int64_t n = 1; n < 5000; ++n) {
    EXPECT_GE(length_bucket(n), n);
    EXPECT_LE(length_bucket(n), std::max<int64_t>(64, n + n / 2));
    EXPECT_EQ(length_bucket(length_bucket(n)), length_bucket(n));
    EXPECT_GE(sequences_bucket(n), n);
    EXPECT_LE(sequences_bucket(n), std::max<int64_t>(8, n + n / 2));
  }
}

TEST(AttentionChoices, AreThoseThatTheModelAsksFor) {
  const std::vector<int64_t> lengths = {64, 96, 128, 192, 256};
  Config c = encoder();
  std::vector<AttentionKind> kinds = attention_kinds(c, 1);
  EXPECT_EQ(lengths_of(kinds, AttentionDirection::forward), lengths);
  EXPECT_EQ(lengths_of(kinds, AttentionDirection::backward), lengths);
  for (const AttentionKind& kind : kinds) {
    EXPECT_EQ(kind.heads, 12);
    EXPECT_EQ(kind.head_size, 32);
  }
  EXPECT_EQ(choice_name(kinds[1], "a GPU", "cuDNN 9.19.0"),
            "attention/a GPU/cuDNN 9.19.0/forward, 12 heads of 32, texts of up to 96 tokens");

  // Some ranks of a group have one head more.
  kinds = attention_kinds(c, 5);
  EXPECT_EQ(kinds.size(), 20u);
  EXPECT_TRUE(std::all_of(kinds.begin(), kinds.end(), [](const AttentionKind& kind) {
    return kind.heads == 2 || kind.heads == 3;
  }));

  c.model.attention_dropout = 0.1;  // evaluations have none
  kinds = attention_kinds(c, 1);
  EXPECT_EQ(lengths_of(kinds, AttentionDirection::forward), lengths);
  EXPECT_TRUE(lengths_of(kinds, AttentionDirection::backward).empty());

  c.train.precision = Precision::fp32;
  EXPECT_TRUE(attention_kinds(c, 1).empty());
  c = encoder();
  c.model.layers = 0;
  EXPECT_TRUE(attention_kinds(c, 1).empty());
}

TEST(AttentionChoices, AnEngineIsThatOfItsKindElseTheOther) {
  const AttentionKind kind{AttentionDirection::forward, 12, 64, 128};
  AttentionEngines engines;
  EXPECT_EQ(engines.of(kind), AttentionEngine::own);
  engines.chosen[kind] = AttentionEngine::cudnn;
  EXPECT_EQ(engines.of(kind), AttentionEngine::cudnn);
  EXPECT_EQ(engines.of({AttentionDirection::backward, 12, 64, 128}), AttentionEngine::own);
  EXPECT_EQ(engines.of({AttentionDirection::forward, 12, 64, 192}), AttentionEngine::own);
  EXPECT_EQ((AttentionTimes{1.0, 0.9, ""}).faster(), AttentionEngine::cudnn);
  EXPECT_EQ((AttentionTimes{1.0, 1.0, ""}).faster(), AttentionEngine::own);
  EXPECT_EQ((AttentionTimes{1.0, std::nullopt, "no plan"}).faster(), AttentionEngine::own);
}

}  // namespace
}  // namespace amur
