// Hashed n-grams: which ids a text gives, and what survives the checkpoint.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/train/data/ngram_tokenizer.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::encoded;

constexpr int64_t kIds = 1000;

int32_t id_of(std::string_view gram) {
  return static_cast<int32_t>(1 + mix64(fnv1a(gram)) % static_cast<uint64_t>(kIds - 1));
}

TEST(Ngrams, AWordGivesItselfAndItsParts) {
  const auto tokenizer = make_ngram_tokenizer(kIds);
  const std::vector<int32_t> want = {id_of("<cat>"), id_of("<ca"),  id_of("cat"),
                                     id_of("at>"),   id_of("<cat"), id_of("cat>")};
  EXPECT_EQ(encoded(*tokenizer, "cat"), want);
  EXPECT_EQ(encoded(*tokenizer, " Cat! "), want);  // case and punctuation carry nothing
  EXPECT_NE(encoded(*tokenizer, "car"), want);
}

TEST(Ngrams, CountsCharactersNotBytes) {
  const auto tokenizer = make_ngram_tokenizer(kIds);
  // One character between the marks: "<\u00fc>" is itself the only 3-gram.
  EXPECT_EQ(encoded(*tokenizer, "\u00dc"), std::vector<int32_t>{id_of("<\u00fc>")});
  EXPECT_EQ(encoded(*tokenizer, "\u00fc").size(), 1u);
  EXPECT_EQ(encoded(*tokenizer, "stra\u00dfe"), encoded(*tokenizer, "STRASSE"));
}

TEST(Ngrams, ShareTheIdsOfTheirParts) {
  const auto tokenizer = make_ngram_tokenizer(1 << 20);
  const auto whole = encoded(*tokenizer, "Zentralbankkredit"), part = encoded(*tokenizer, "Kredit");
  const std::set<int32_t> all(whole.begin(), whole.end());
  EXPECT_GE(std::count_if(part.begin(), part.end(), [&](int32_t id) { return all.contains(id); }),
            5);
}

TEST(Ngrams, TextsWithoutAWordAndLongTexts) {
  const auto tokenizer = make_ngram_tokenizer(kIds);
  EXPECT_EQ(encoded(*tokenizer, ""), std::vector<int32_t>{0});
  EXPECT_EQ(encoded(*tokenizer, " -- "), std::vector<int32_t>{0});
  std::vector<int32_t> ids;
  EXPECT_TRUE(tokenizer->encode("a long enough text", 4, ids));
  EXPECT_EQ(ids.size(), 4u);
  EXPECT_FALSE(tokenizer->encode("cat", 512, ids));
  for (int32_t id : ids) EXPECT_TRUE(id >= 0 && id < kIds);
}

TEST(Ngrams, SurviveTheCheckpoint) {
  const auto tokenizer = make_ngram_tokenizer(kIds, 2, 4);
  const auto again = Tokenizer::from_bytes(tokenizer->serialised(), "test");
  EXPECT_STREQ(again->kind(), "ngrams");
  EXPECT_EQ(again->vocab_size(), kIds);
  EXPECT_EQ(encoded(*again, "two words"), encoded(*tokenizer, "two words"));
  EXPECT_EQ(read_ngram_tokenizer("something else"), nullptr);
  EXPECT_THROW(make_ngram_tokenizer(1), UsageError);
}

}  // namespace
}  // namespace amur
