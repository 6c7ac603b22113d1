#include "src/train/data/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace amur {
namespace {

// A batch with texts of these lengths; tokens are numbered through.
LocalBatch batch_of(const std::vector<int32_t>& queries, const std::vector<int32_t>& documents) {
  LocalBatch batch;
  const auto add = [&](int32_t length, int64_t sample, int32_t view, std::vector<TextUnit>& units) {
    units.push_back({sample, view, static_cast<int32_t>(batch.tokens.size()), length, 0});
    for (int32_t i = 0; i < length; ++i)
      batch.tokens.push_back(static_cast<int32_t>(batch.tokens.size()));
  };
  for (size_t i = 0; i < queries.size(); ++i)
    add(queries[i], static_cast<int64_t>(100 + i), kViewQuery, batch.queries);
  for (size_t i = 0; i < documents.size(); ++i)
    add(documents[i], static_cast<int64_t>(100 + i), kViewPositive, batch.documents);
  return batch;
}

std::vector<int32_t> random_lengths(int count, uint64_t seed) {
  std::vector<int32_t> lengths;
  for (int i = 0; i < count; ++i)
    lengths.push_back(1 +
                      static_cast<int32_t>(RandomKey(seed).below(static_cast<uint64_t>(i), 60)));
  return lengths;
}

const TextUnit& unit_of(const LocalBatch& batch, int32_t unit) {
  const auto queries = static_cast<int32_t>(batch.queries.size());
  return unit < queries ? batch.queries[static_cast<size_t>(unit)]
                        : batch.documents[static_cast<size_t>(unit - queries)];
}

TEST(PlanChunks, CoversEveryUnitOnceWithinTheBudget) {
  const LocalBatch batch = batch_of(random_lengths(200, 1), random_lengths(230, 2));
  for (const bool separate : {false, true}) {
    for (const int64_t budget : {1, 40, 64, 500, 1 << 20}) {
      std::multiset<int32_t> units;
      const auto chunks = plan_chunks(batch, budget, separate);
      for (size_t c = 0; c < chunks.size(); ++c) {
        const Chunk& chunk = chunks[c];
        int64_t tokens = 0;
        bool queries = false, documents = false;
        for (const int32_t unit : chunk.units) {
          units.insert(unit);
          tokens += unit_of(batch, unit).length;
          (unit < 200 ? queries : documents) = true;
        }
        EXPECT_EQ(tokens, chunk.tokens);
        EXPECT_TRUE(tokens <= budget || chunk.units.size() == 1) << tokens << " of " << budget;
        EXPECT_TRUE(!separate || queries != documents);
        // Greedy: the next unit would not have fitted.
        const bool same_side_follows =
            c + 1 < chunks.size() && (!separate || (chunks[c + 1].units.front() < 200) == queries);
        if (same_side_follows) {
          EXPECT_GT(tokens + unit_of(batch, chunks[c + 1].units.front()).length, budget);
        }
      }
      ASSERT_EQ(units.size(), 430u);
      EXPECT_EQ(std::set<int32_t>(units.begin(), units.end()).size(), 430u);
    }
  }
}

TEST(PlanChunks, SortsByLengthThenPosition) {
  const LocalBatch batch = batch_of({5, 2, 5}, {2, 9});
  const auto chunks = plan_chunks(batch, 1000, false);
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].units, (std::vector<int32_t>{1, 3, 0, 2, 4}));
}

TEST(PlanChunks, ALongTextIsAChunkOfItsOwnAndAnEmptyBatchHasNone) {
  const auto chunks = plan_chunks(batch_of({3, 50, 4}, {60}), 10, false);
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[0].units, (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(chunks[1].units, (std::vector<int32_t>{1}));
  EXPECT_EQ(chunks[2].units, (std::vector<int32_t>{3}));
  EXPECT_TRUE(plan_chunks(LocalBatch{}, 10, true).empty());
}

TEST(PackedChunk, HoldsTheTokensBetweenItsBounds) {
  const LocalBatch batch = batch_of({3, 1, 4}, {2, 5, 1});
  const RandomKey step_key(99);
  for (const Chunk& chunk : plan_chunks(batch, 7, false)) {
    const PackedChunk packed(batch, chunk, &step_key);
    const ChunkView view = packed.view();
    ASSERT_EQ(view.tokens(), chunk.tokens);
    ASSERT_EQ(view.sequences(), static_cast<int64_t>(chunk.units.size()));
    const auto* ids = view.ids.as<int32_t>();
    const auto* bounds = view.packed.cu_seqlens.as<int32_t>();
    int64_t longest = 0;
    for (size_t s = 0; s < chunk.units.size(); ++s) {
      const TextUnit& unit = unit_of(batch, chunk.units[s]);
      ASSERT_EQ(bounds[s + 1] - bounds[s], unit.length);
      for (int32_t i = 0; i < unit.length; ++i) EXPECT_EQ(ids[bounds[s] + i], unit.first + i);
      longest = std::max<int64_t>(longest, unit.length);
      EXPECT_EQ(static_cast<uint64_t>(view.packed.dropout_keys.as<int64_t>()[s]),
                step_key.fold(static_cast<uint64_t>(unit.view))
                    .fold(static_cast<uint64_t>(unit.sample))
                    .value());
    }
    EXPECT_EQ(view.packed.longest, longest);
    EXPECT_FALSE(PackedChunk(batch, chunk, nullptr).view().packed.dropout_keys.defined());
  }
}

TEST(PackedChunk, DropoutKeysFollowTheTextNotTheChunk) {
  const LocalBatch batch = batch_of(random_lengths(40, 3), random_lengths(40, 4));
  const auto keys_at = [&](int64_t budget, RandomKey step_key) {
    std::map<int32_t, int64_t> keys;
    for (const Chunk& chunk : plan_chunks(batch, budget, false)) {
      const PackedChunk packed(batch, chunk, &step_key);
      for (size_t s = 0; s < chunk.units.size(); ++s)
        keys[chunk.units[s]] = packed.view().packed.dropout_keys.as<int64_t>()[s];
    }
    return keys;
  };
  const auto keys = keys_at(64, RandomKey(5));
  EXPECT_EQ(keys, keys_at(1000, RandomKey(5)));
  std::set<int64_t> different;
  for (const auto& [unit, key] : keys) different.insert(key);
  EXPECT_EQ(different.size(), keys.size());  // also over the two views of one sample
  EXPECT_NE(keys, keys_at(64, RandomKey(6)));
}

}  // namespace
}  // namespace amur
