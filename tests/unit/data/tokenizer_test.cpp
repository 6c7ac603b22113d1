#include "src/train/data/tokenizer.h"

#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "src/core/error.h"
#include "src/train/data/unigram_lattice.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::small_tokenizer;
using test::small_tsv;

using test::encoded;
using test::Ids;

std::unique_ptr<Tokenizer> trained(DataConfig config, const std::string& text) {
  std::istringstream lines(text);
  return Tokenizer::train(
      config, [&](std::string& line) { return static_cast<bool>(std::getline(lines, line)); });
}

TEST(Tokenizer, TrainingIsDeterministicAndFollowsTheTexts) {
  DataConfig config;
  config.vocab_size = 200;
  EXPECT_EQ(trained(config, small_tsv(300))->serialised(), small_tokenizer().serialised());
  EXPECT_NE(trained(config, small_tsv(299))->serialised(), small_tokenizer().serialised());
}

TEST(Tokenizer, AVocabularyLargerThanTheTextsAllowIsAsLargeAsItCanBe) {
  DataConfig config;
  config.vocab_size = 16000;
  const auto tokenizer = trained(config, small_tsv(300));
  EXPECT_GT(tokenizer->vocab_size(), 50);
  EXPECT_LT(tokenizer->vocab_size(), 16000);
}

TEST(Tokenizer, NoTextsAreAUsageErrorAndACallersExceptionComesThrough) {
  DataConfig config;
  EXPECT_THROW(trained(config, ""), UsageError);
  EXPECT_THROW(
      Tokenizer::train(config,
                       [](std::string&) -> bool { throw std::out_of_range("the source failed"); }),
      std::out_of_range);
}

TEST(Tokenizer, EncodesWithMarkersAndDecodesBack) {
  const Tokenizer& tokenizer = small_tokenizer();
  const Ids ids = encoded(tokenizer, "query about tiger");
  ASSERT_GT(ids.size(), 3u);
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(ids.back(), 2);
  EXPECT_EQ(tokenizer.decode(ids), "query about tiger");
  EXPECT_EQ(encoded(tokenizer, ""), (Ids{1, 2}));
  EXPECT_EQ(encoded(tokenizer, "  query   about tiger "), ids);
  Ids appended = {7};
  tokenizer.encode("query about tiger", 1000, appended);
  EXPECT_EQ(Ids(appended.begin() + 1, appended.end()), ids);
}

TEST(Tokenizer, CutsAtMaxLengthKeepingTheEndMarker) {
  const Tokenizer& tokenizer = small_tokenizer();
  const std::string text = "query about tiger and salmon by the bridge";
  const Ids whole = encoded(tokenizer, text);
  const auto size = static_cast<int64_t>(whole.size());
  Ids ids;
  EXPECT_FALSE(tokenizer.encode(text, size, ids));
  EXPECT_EQ(ids, whole);
  ids.clear();
  EXPECT_TRUE(tokenizer.encode(text, size - 1, ids));
  ASSERT_EQ(static_cast<int64_t>(ids.size()), size - 1);
  EXPECT_EQ(ids.back(), 2);
  EXPECT_TRUE(std::equal(ids.begin(), ids.end() - 1, whole.begin()));
}

TEST(Tokenizer, AMegabyteIsCutAndBadBytesAreTaken) {
  const Tokenizer& tokenizer = small_tokenizer();
  std::string text;
  while (text.size() < (1 << 20)) text += "tiger \xC3\xA4 ";
  Ids ids;
  EXPECT_TRUE(tokenizer.encode(text, 16, ids));
  EXPECT_EQ(ids.size(), 16u);
  EXPECT_GE(encoded(tokenizer, "tiger \xFF\xC3 night").size(), 3u);
}

TEST(Tokenizer, SavedBytesGiveTheSameIdsAndOthersAreRefused) {
  const auto copy = Tokenizer::from_bytes(small_tokenizer().serialised(), "copy");
  EXPECT_EQ(copy->vocab_size(), small_tokenizer().vocab_size());
  EXPECT_EQ(encoded(*copy, "document 5 about river"),
            encoded(small_tokenizer(), "document 5 about river"));
  for (const std::string& bytes : {std::string(), std::string("this is no model"),
                                   small_tokenizer().serialised().substr(0, 700)}) {
    try {
      Tokenizer::from_bytes(bytes, "vocab.model");
      ADD_FAILURE() << bytes.size() << " bytes were taken for a model";
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("vocab.model"), std::string::npos);
    }
  }
}

TEST(Tokenizer, LowerCaseFoldsCase) {
  DataConfig config;
  config.vocab_size = 200;
  EXPECT_NE(encoded(small_tokenizer(), "TIGER"), encoded(small_tokenizer(), "tiger"));
  config.lower_case = true;
  const auto tokenizer = trained(config, small_tsv(300));
  EXPECT_EQ(encoded(*tokenizer, "TIGER"), encoded(*tokenizer, "tiger"));
}

TEST(Tokenizer, SampledSegmentationsSpellTheTextAndFollowTheKey) {
  const Tokenizer& tokenizer = small_tokenizer();
  const std::string text = "document about lantern and voyage";
  std::set<Ids> different;
  for (uint64_t k = 0; k < 50; ++k) {
    Ids ids, again;
    EXPECT_FALSE(tokenizer.encode_sampled(text, 1000, 0.2, RandomKey(k), ids));
    tokenizer.encode_sampled(text, 1000, 0.2, RandomKey(k), again);
    EXPECT_EQ(ids, again);
    EXPECT_EQ(tokenizer.decode(ids), text);
    different.insert(ids);
  }
  EXPECT_GT(different.size(), 3u);
  // The larger alpha, the likelier the best segmentation.
  Ids ids;
  tokenizer.encode_sampled(text, 1000, 1000.0, RandomKey(1), ids);
  EXPECT_EQ(ids, encoded(tokenizer, text));
}

TEST(Tokenizer, SampledUnknownCharactersAreOneToken) {
  Ids ids;
  small_tokenizer().encode_sampled("tiger \u4e2d\u6587", 1000, 0.5, RandomKey(3), ids);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 1);
  EXPECT_EQ(std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id == 1 || id == 2; }),
            2);
}

TEST(Tokenizer, EncodesFromManyThreads) {
  const Tokenizer& tokenizer = small_tokenizer();
  const Ids expected = encoded(tokenizer, "query 7 tiger night stone");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        wrong += encoded(tokenizer, "query 7 tiger night stone") != expected;
        Ids ids;
        tokenizer.encode_sampled("query 7 tiger night stone", 100, 0.3, RandomKey(5), ids);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(UnigramLattice, DrawsInProportionToTheScores) {
  // "ab" as [ab] or [a][b], "b" also as part of "bc".
  const double p_ab = 0.2, p_a = 0.5, p_b = 0.3;
  const UnigramLattice lattice({{"ab", 10, std::log(p_ab)},
                                {"a", 11, std::log(p_a)},
                                {"b", 12, std::log(p_b)},
                                {"bc", 13, std::log(0.1)}});
  for (const double alpha : {1.0, 0.5}) {
    constexpr int kDraws = 20000;
    int whole = 0;
    for (uint64_t k = 0; k < kDraws; ++k)
      whole += lattice.sample("ab", alpha, RandomKey(k)).size() == 1;
    const double one = std::pow(p_ab, alpha), two = std::pow(p_a * p_b, alpha);
    EXPECT_NEAR(static_cast<double>(whole) / kDraws, one / (one + two), 0.02);
  }
}

TEST(UnigramLattice, CoversEveryByteInOrder) {
  const UnigramLattice lattice({{"ab", 1, -1.0}, {"\u00e4", 2, -2.0}});
  const std::string text = "ab\u00e4x\u4e2dab";
  uint32_t at = 0;
  std::vector<int32_t> ids;
  for (const UnigramLattice::Part& part : lattice.sample(text, 1.0, RandomKey(1))) {
    EXPECT_EQ(part.first, at);
    at += part.length;
    ids.push_back(part.id);
  }
  EXPECT_EQ(at, text.size());
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, -1, -1, 1}));
  EXPECT_TRUE(lattice.sample("", 1.0, RandomKey(1)).empty());
}

}  // namespace
}  // namespace amur
