// Dataset and BatchStream. Each process plays all ranks of a grid in turn where no communication is
// involved; what is collective runs over the ranks of the job.
#include <mpi.h>

#include <algorithm>
#include <map>
#include <set>

#include "comm/mpi_communicator.h"
#include "comm/trace.h"
#include "src/core/error.h"
#include "src/train/data/pair_source.h"
#include "src/train/data/sample_order.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::ScratchFolder;
using test::small_tokenizer;
using test::small_tsv;

class Batches : public ::testing::Test {
 protected:
  void SetUp() override {
    const MPI_Comm world = MPI_COMM_WORLD;
    world_ = MpiCommunicator::split(&world, 0, "world", &trace_);
    node_ = MpiCommunicator::split_by_node(&world, "node", &trace_);
    config_.data.eval_share = 0;
    config_.train.batch_size = 32;
    config_.train.seed = 11;
    config_.model.max_length = 40;
  }

  SourceConfig tsv(const std::string& name, const std::string& content) {
    SourceConfig source;
    source.format = name.ends_with(".jsonl") ? SourceFormat::jsonl : SourceFormat::tsv;
    source.path = folder_.write(name, content);
    return source;
  }

  std::unique_ptr<Dataset> dataset() {
    return std::make_unique<Dataset>(config_.data, *world_, *node_);
  }

  std::vector<LocalBatch> batches(const Dataset& data, int rank, int ranks, int count,
                                  DataPosition start = {}) {
    BatchStream stream(data, small_tokenizer(), config_, rank, ranks, start);
    std::vector<LocalBatch> list;
    for (int i = 0; i < count; ++i) list.push_back(stream.next());
    return list;
  }

  Trace trace_;
  std::unique_ptr<MpiCommunicator> world_, node_;
  ScratchFolder folder_;
  Config config_;
};

// Everything about a text of a batch that must not depend on the grid.
using Text = std::tuple<int64_t, int32_t, uint64_t, std::vector<int32_t>>;

std::vector<Text> texts_of(const LocalBatch& batch) {
  std::vector<Text> texts;
  for (const auto* units : {&batch.queries, &batch.documents})
    for (const TextUnit& unit : *units)
      texts.emplace_back(unit.sample, unit.view, unit.text_id,
                         std::vector<int32_t>(batch.tokens.begin() + unit.first,
                                              batch.tokens.begin() + unit.first + unit.length));
  return texts;
}

TEST_F(Batches, AnEpochHasEverySampleOnceAtAnyNumberOfRanks) {
  config_.data.sources = {tsv("a.tsv", small_tsv(150)), tsv("b.tsv", small_tsv(77))};
  config_.model.word_dropout = 0.2;
  config_.data.subword_sampling = 0.3;
  const auto data = dataset();
  ASSERT_EQ(data->samples(), 227);
  const auto per_epoch = static_cast<int>(BatchStream::batches_per_epoch(*data, config_));
  ASSERT_EQ(per_epoch, 8);  // the last of 3
  std::vector<std::vector<Text>> reference;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    std::vector<std::vector<Text>> global(static_cast<size_t>(2 * per_epoch));
    std::vector<DataPosition> ends;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto list = batches(*data, rank, ranks, 2 * per_epoch);
      for (size_t i = 0; i < list.size(); ++i) {
        const LocalBatch& batch = list[i];
        EXPECT_EQ(batch.global_queries, i % 8 == 7 ? 3 : 32);
        EXPECT_EQ(batch.positive.size(), batch.queries.size());
        EXPECT_EQ(batch.other_first.size(), batch.queries.size() + 1);
        EXPECT_EQ(batch.start.epoch, static_cast<int64_t>(i) / 8);
        if (rank == 0) ends.push_back(batch.end);
        EXPECT_EQ(batch.end, ends[i]);
        const auto texts = texts_of(batch);
        global[i].insert(global[i].end(), texts.begin(), texts.end());
      }
    }
    for (auto& texts : global) std::sort(texts.begin(), texts.end());
    for (const size_t epoch : {0u, 1u}) {
      std::multiset<int64_t> samples;
      for (size_t i = 0; i < 8; ++i)
        for (const Text& text : global[epoch * 8 + i])
          if (std::get<1>(text) == kViewQuery) samples.insert(std::get<0>(text));
      EXPECT_EQ(samples.size(), 227u);
      EXPECT_EQ(std::set<int64_t>(samples.begin(), samples.end()).size(), 227u);
    }
    if (ranks == 1) reference = global;
    EXPECT_EQ(global, reference) << ranks << " ranks";
  }
  EXPECT_NE(reference[0], reference[8]);  // another epoch, another order
}

TEST_F(Batches, ResumesAtAnyPositionWithTheSameBatches) {
  config_.data.sources = {tsv("a.tsv", small_tsv(100))};
  config_.model.word_dropout = 0.1;
  const auto data = dataset();
  const auto all = batches(*data, 1, 2, 9);
  for (const size_t from : {0u, 1u, 3u, 4u, 6u}) {
    const auto rest = batches(*data, 1, 2, static_cast<int>(9 - from), all[from].start);
    for (size_t i = 0; i < rest.size(); ++i) {
      EXPECT_EQ(texts_of(rest[i]), texts_of(all[from + i]));
      EXPECT_EQ(rest[i].end, all[from + i].end);
    }
    if (from > 0) {
      // The end of a batch says as much as the start of the next.
      EXPECT_EQ(texts_of(batches(*data, 1, 2, 1, all[from - 1].end)[0]), texts_of(all[from]));
    }
  }
  config_.train.seed = 12;
  EXPECT_NE(texts_of(batches(*data, 1, 2, 1)[0]), texts_of(all[0]));
}

TEST_F(Batches, ThreadsChangeNothing) {
  std::string lines;
  for (int i = 0; i < 2000; ++i)
    lines +=
        fmt::format(R"({{"query": "query {}", "pos": ["text {}", "other {}"], "neg": ["not {}"]}})",
                    i, i % 300, i, i + 1) +
        "\n";
  config_.data.sources = {tsv("many.jsonl", lines)};
  config_.train.batch_size = 1900;
  config_.data.hard_negatives = 1;
  config_.model.word_dropout = 0.2;
  config_.model.max_length = 6;
  const auto data = dataset();
  const std::vector<LocalBatch> one = batches(*data, 0, 1, 3);
  EXPECT_GT(one[0].truncated, 0);
  for (const int64_t threads : {2, 3, 50}) {
    config_.data.threads = threads;
    const std::vector<LocalBatch> more = batches(*data, 0, 1, 3);
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(more[i].tokens, one[i].tokens);
      EXPECT_EQ(more[i].positive, one[i].positive);
      EXPECT_EQ(more[i].other_first, one[i].other_first);
      EXPECT_EQ(more[i].other_positives, one[i].other_positives);
      EXPECT_EQ(more[i].truncated, one[i].truncated);
      EXPECT_EQ(texts_of(more[i]), texts_of(one[i]));
    }
  }
}

TEST_F(Batches, OnePositiveIsDrawnAnEpochAndTheOthersAreNamed) {
  std::string lines;
  for (int i = 0; i < 20; ++i)
    lines +=
        fmt::format(R"({{"query":"q {0}","pos":["a {0}","b {0}","c {0}"],"neg":["n {0}","m {0}"]}})"
                    "\n",
                    i);
  config_.data.sources = {tsv("p.jsonl", lines)};
  config_.data.sources[0].query_prefix = "query: ";
  config_.data.hard_negatives = 1;
  const auto data = dataset();
  std::map<int64_t, std::set<uint64_t>> drawn;
  for (const LocalBatch& batch : batches(*data, 0, 1, 30)) {
    ASSERT_EQ(batch.documents.size(), 2 * batch.queries.size());
    for (size_t i = 0; i < batch.queries.size(); ++i) {
      const int64_t id = batch.queries[i].sample;
      const RawSample raw = data->sample(id);
      // The identity is that of the text without its prefix.
      EXPECT_EQ(batch.queries[i].text_id, text_identity(raw.query));
      const TextUnit& positive = batch.documents[static_cast<size_t>(batch.positive[i])];
      EXPECT_EQ(positive.sample, id);
      EXPECT_EQ(positive.view, kViewPositive);
      const TextUnit& negative = batch.documents[static_cast<size_t>(batch.positive[i]) + 1];
      EXPECT_EQ(negative.view, kViewFirstNegative);
      EXPECT_EQ(negative.text_id, text_identity(raw.negatives[0]));
      std::set<uint64_t> right(batch.other_positives.begin() + batch.other_first[i],
                               batch.other_positives.begin() + batch.other_first[i + 1]);
      EXPECT_EQ(right.size(), 2u);
      EXPECT_FALSE(right.contains(positive.text_id));
      right.insert(positive.text_id);
      std::set<uint64_t> expected;
      for (const std::string& text : raw.positives) expected.insert(text_identity(text));
      EXPECT_EQ(right, expected);
      drawn[id].insert(positive.text_id);
    }
  }
  for (const auto& [id, texts] : drawn) EXPECT_EQ(texts.size(), 3u) << id;
}

TEST_F(Batches, PrefixesReachTheTokens) {
  config_.data.sources = {tsv("a.tsv", "river\tforest\n")};
  config_.data.sources[0].query_prefix = "query ";
  config_.data.sources[0].document_prefix = "document ";
  const auto batch = batches(*dataset(), 0, 1, 1)[0];
  const auto text = [&](const TextUnit& unit) {
    return small_tokenizer().decode(
        {batch.tokens.begin() + unit.first, batch.tokens.begin() + unit.first + unit.length});
  };
  EXPECT_EQ(text(batch.queries[0]), "query river");
  EXPECT_EQ(text(batch.documents[0]), "document forest");
}

TEST_F(Batches, WordDropoutKeepsMarkersAndOneWord) {
  config_.data.sources = {tsv("a.tsv", small_tsv(200))};
  config_.train.batch_size = 200;
  const auto data = dataset();
  const auto whole = batches(*data, 0, 1, 1)[0];
  config_.model.word_dropout = 0.3;
  const auto dropped = batches(*data, 0, 1, 1)[0];
  const auto content = [](const LocalBatch& batch) {
    return static_cast<double>(batch.tokens.size()) - 2.0 * 2 * 200;
  };
  EXPECT_NEAR(content(dropped) / content(whole), 0.7, 0.03);
  config_.model.word_dropout = 0.999;
  const auto nearly_all = batches(*data, 0, 1, 1)[0];
  for (const auto* units : {&nearly_all.queries, &nearly_all.documents})
    for (const TextUnit& unit : *units) {
      ASSERT_GE(unit.length, 3);
      EXPECT_EQ(nearly_all.tokens[static_cast<size_t>(unit.first)], 1);
      EXPECT_EQ(nearly_all.tokens[static_cast<size_t>(unit.first + unit.length - 1)], 2);
    }
}

TEST_F(Batches, CutTextsAreCounted) {
  config_.data.sources = {tsv("a.tsv", small_tsv(64))};
  config_.train.batch_size = 64;
  const auto data = dataset();
  config_.model.max_length = 1000;
  const auto whole = batches(*data, 0, 1, 1)[0];
  EXPECT_EQ(whole.truncated, 0);
  config_.model.max_length = 8;
  int64_t longer = 0;
  for (const auto* units : {&whole.queries, &whole.documents})
    longer += std::count_if(units->begin(), units->end(),
                            [](const TextUnit& unit) { return unit.length > 8; });
  ASSERT_GT(longer, 0);
  EXPECT_EQ(batches(*data, 0, 1, 1)[0].truncated, longer);
}

TEST_F(Batches, WeightedSourcesAreDrawnInProportion) {
  config_.data.sources = {tsv("a.tsv", small_tsv(1000)), tsv("b.tsv", small_tsv(50))};
  config_.data.sources[0].weight = 1;
  config_.data.sources[1].weight = 3;
  config_.train.batch_size = 1050;
  const auto data = dataset();
  EXPECT_TRUE(data->weighted());
  EXPECT_NE(data->report().find("with replacement"), std::string::npos);
  const SampleOrder order(*data, 1, 0);
  int64_t second = 0;
  for (int64_t i = 0; i < 1050; ++i) second += data->source_of(order(i)) == 1;
  EXPECT_NEAR(static_cast<double>(second) / 1050, 0.75, 0.05);
  EXPECT_EQ(BatchStream::batches_per_epoch(*data, config_), 1);
}

TEST(ShareOfRank, IsAPartitionBalancedByBytes) {
  std::vector<int64_t> bytes;
  for (uint64_t i = 0; i < 500; ++i)
    bytes.push_back(static_cast<int64_t>(5 + RandomKey(2).below(i, 200)));
  for (const int ranks : {1, 2, 3, 7, 600}) {
    std::set<int32_t> seen;
    int64_t least = 1 << 30, most = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      int64_t sum = 0;
      for (const int32_t i : share_of_rank(bytes, rank, ranks)) {
        EXPECT_TRUE(seen.insert(i).second);
        sum += bytes[static_cast<size_t>(i)];
      }
      least = std::min(least, sum);
      most = std::max(most, sum);
    }
    EXPECT_EQ(seen.size(), 500u);
    EXPECT_LE(most - least, 205);
    EXPECT_EQ(least == 0, ranks == 600);
  }
}

TEST_F(Batches, AFailureInTheThreadReachesNext) {
  config_.data.sources = {tsv("a.tsv", small_tsv(100))};
  const auto data = dataset();
  // The file becomes something else of the same size while it is in use.
  folder_.write("a.tsv", std::string(small_tsv(100).size(), 'x'));
  BatchStream stream(*data, small_tokenizer(), config_, 0, 1, {});
  EXPECT_THROW(for (int i = 0; i < 4; ++i) stream.next(), IoError);
}

TEST_F(Batches, AMissingFileIsOneErrorOnEveryRank) {
  config_.data.sources = {tsv("a.tsv", small_tsv(10))};
  // Each rank has its own folder: only on the last one is the file missing.
  if (world_->rank() == world_->size() - 1) config_.data.sources[0].path = "/nowhere/a.tsv";
  EXPECT_THROW(dataset(), IoError);
}

TEST_F(Batches, MalformedLinesAreRefusedOnEveryRank) {
  config_.data.sources = {tsv("a.tsv", "a\tb\nno tab\n")};
  try {
    dataset();
    FAIL() << "a malformed line was accepted";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("a.tsv:2: no tab"), std::string::npos) << error.what();
  }
}

TEST_F(Batches, TheEvaluationSetHasDistinctTextsAndObeysItsLimit) {
  std::string lines;
  for (int i = 0; i < 60; ++i) lines += fmt::format("q{}\td{}\n", i % 30, i % 20);
  config_.data.sources = {tsv("a.tsv", small_tsv(10))};
  config_.data.sources[0].eval_path = folder_.write("eval.tsv", lines);
  config_.data.sources[0].document_prefix = "d: ";
  const EvalSet set = dataset()->eval_set();
  ASSERT_EQ(set.queries.size(), 30u);
  ASSERT_EQ(set.documents.size(), 20u);
  EXPECT_EQ(set.documents[3], "d: d3");
  EXPECT_EQ(set.right[3], (std::vector<int32_t>{3, 13}));
  config_.data.eval_limit = 6;  // pairs 0, 10, 20, 30, 40, 50
  const EvalSet limited = dataset()->eval_set();
  EXPECT_EQ(limited.queries, (std::vector<std::string>{"q0", "q10", "q20"}));
  EXPECT_EQ(limited.documents, (std::vector<std::string>{"d: d0", "d: d10"}));
}

TEST_F(Batches, TheVocabularySeesBothSidesOfTheTrainingSplit) {
  config_.data.sources = {tsv("a.tsv", "a\tb\tn\nc\td\ne\tf\ng\th\n")};
  const auto data = dataset();
  const auto texts = [&](int64_t limit) {
    std::vector<std::string> list;
    const auto next = vocabulary_texts(*data, limit);
    for (std::string text; next(text);) list.push_back(text);
    return list;
  };
  EXPECT_EQ(texts(100), (std::vector<std::string>{"a", "b", "c", "d", "e", "f", "g", "h"}));
  EXPECT_EQ(texts(2), (std::vector<std::string>{"a", "b", "e", "f"}));
}

}  // namespace
}  // namespace amur
