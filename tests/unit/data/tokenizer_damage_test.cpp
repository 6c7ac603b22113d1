// Tokenizer files that are not as they were written: an error or a tokenizer that works, and never
// a crash or a read outside of the bytes, which stand in heap memory of their very size.
// AMUR_MUTATIONS sets how many are tried.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "src/core/error.h"
#include "src/core/random.h"
#include "src/train/data/tokenizer.h"
#include "src/train/data/tokenizer_json.h"
#include "src/train/json_reader.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using namespace std::string_view_literals;
using Json = nlohmann::json;

uint64_t mutations() {
  const char* text = std::getenv("AMUR_MUTATIONS");
  return text ? std::strtoull(text, nullptr, 10) : 1500;
}

// Draws for one mutation.
class Draws {
 public:
  explicit Draws(uint64_t mutation)
      : key_(RandomKey(7).fold(static_cast<uint64_t>(RandomPurpose::probe)).fold(mutation)) {}
  size_t below(size_t bound) { return static_cast<size_t>(key_.below(next_++, bound)); }

 private:
  RandomKey key_;
  uint64_t next_ = 0;
};

// A copy in memory of its size.
struct HeapBytes {
  explicit HeapBytes(const std::string& text) : size(text.size()), bytes(new char[text.size()]) {
    std::memcpy(bytes.get(), text.data(), size);
  }
  std::string_view view() const { return {bytes.get(), size}; }
  size_t size;
  std::unique_ptr<char[]> bytes;
};

void damage_bytes(std::string& text, Draws& draw) {
  constexpr std::string_view kBytes = "{}[]\",:\\/0-9.eEtfn\0\xff\xc3\xed\xf4 \n"sv;
  const size_t times = 1 + draw.below(3);
  for (size_t i = 0; i < times && !text.empty(); ++i) {
    const size_t at = draw.below(text.size());
    const size_t size = std::min(text.size() - at, 1 + draw.below(draw.below(4) == 0 ? 200 : 4));
    switch (draw.below(6)) {
      case 0:
        text[at] = static_cast<char>(text[at] ^ (1 << draw.below(8)));
        break;
      case 1:
        text[at] = kBytes[draw.below(kBytes.size())];
        break;
      case 2:
        text.erase(at, size);
        break;
      case 3:
        text.insert(draw.below(text.size()), text.substr(at, size));
        break;
      case 4:
        text.resize(at);
        break;
      default:
        text.insert(at, 1, static_cast<char>(draw.below(256)));
    }
  }
}

// Another value somewhere in the tree.
void damage_tree(Json& root, Draws& draw) {
  Json* at = &root;
  while (at->is_structured() && !at->empty() && draw.below(5) != 0) {
    auto child = at->begin();
    std::advance(child, static_cast<std::ptrdiff_t>(draw.below(at->size())));
    at = &*child;
  }
  const Json kValues[] = {nullptr,
                          true,
                          false,
                          0,
                          -1,
                          1.5,
                          1e300,
                          5,
                          1000000,
                          4294967295u,
                          18446744073709551615u,
                          "",
                          "A",
                          "[CLS]",
                          "##",
                          "a",
                          "WordPiece",
                          "BertProcessing",
                          "TemplateProcessing",
                          Json::array(),
                          Json::object(),
                          Json::array({"[SEP]", 3}),
                          root["added_tokens"],
                          root["post_processor"],
                          root["normalizer"]};
  switch (draw.below(4)) {
    case 0:
      if (at->is_object() && !at->empty()) {
        at->erase(std::next(at->begin(), static_cast<std::ptrdiff_t>(draw.below(at->size()))));
        return;
      }
      [[fallthrough]];
    case 1:
      if (at->is_array() && !at->empty()) {
        at->push_back((*at)[draw.below(at->size())]);
        return;
      }
      [[fallthrough]];
    default:
      *at = kValues[draw.below(std::size(kValues))];
  }
}

// Whether the bytes were refused; what is not refused must give ids that are ids.
bool refused(const std::string& bytes) {
  try {
    JsonNode::parse(HeapBytes(bytes).view(), "tokenizer.json");
    const auto tokenizer = Tokenizer::from_bytes(bytes, "tokenizer.json");
    EXPECT_EQ(tokenizer->serialised(), bytes);
    for (const char* text : {"", "Tigers [MASK]<x> \u4e2d\u6587 na\u00efve\t\xff un-believably"}) {
      const HeapBytes copy(text);
      std::vector<int32_t> ids;
      constexpr int64_t kLimit = 60;
      tokenizer->encode(copy.view(), kLimit, ids);
      EXPECT_LE(ids.size(), size_t{kLimit});
      EXPECT_FALSE(ids.empty());
      for (const int32_t id : ids) {
        EXPECT_GE(id, 0);
        EXPECT_LT(id, tokenizer->vocab_size());
      }
      tokenizer->decode(ids);
    }
    return false;
  } catch (const UsageError& error) {
    EXPECT_GT(std::string(error.what()).size(), 20u);
  } catch (const IoError& error) {
    EXPECT_GT(std::string(error.what()).size(), 20u);
  }
  return true;
}

// Small, so that most mutations hit what means something.
Json small_file() {
  Json file = Json::parse(wordpiece_tokenizer_json(
      "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ntiger\n##s\nun\n##believ\n##ably\nna\n##ive\n-\n"
      "\u4e2d\n\u6587\na\n##a\n##\n",
      "", "model"));
  file["added_tokens"].push_back(Json::parse(
      R"({"id":18,"content":"<X>","single_word":true,"lstrip":true,"rstrip":true,
          "normalized":true,"special":false})"));
  return file;
}

// Mutations of a file, `count` of them: some are seen.
void expect_errors_or_tokenizers(const Json& file, uint64_t count) {
  ASSERT_FALSE(refused(file.dump()));
  uint64_t refusals = 0;
  for (uint64_t i = 0; i < count && !::testing::Test::HasFailure(); ++i) {
    Draws draw(i);
    std::string bytes;
    if (i % 2 == 0) {
      bytes = file.dump();
      damage_bytes(bytes, draw);
      if (bytes.empty() || bytes[0] != '{') bytes.insert(0, 1, '{');  // another kind of file
    } else {
      Json damaged = file;
      for (size_t times = 1 + draw.below(2); times > 0; --times)
        if (damaged.is_object()) damage_tree(damaged, draw);
      bytes = damaged.is_object() ? damaged.dump() : "{" + damaged.dump();
    }
    refusals += refused(bytes);
    EXPECT_FALSE(::testing::Test::HasFailure()) << "mutation " << i << ": " << bytes;
  }
  // Most are seen; flags and the letters of a token are as good as others.
  EXPECT_GT(refusals, count / 4);
  EXPECT_LT(refusals, count);
}

TEST(TokenizerDamage, WordPieceFiles) {
  expect_errors_or_tokenizers(small_file(), mutations());
}

Json case_of(const std::string& name) {
  const Json cases =
      Json::parse(test::read_file(AMUR_TEST_DATA "/fixtures/json_tokenizer_cases.json"));
  for (const Json& variant : cases["variants"])
    if (variant["name"] == name) return variant["file"];
  throw std::logic_error("no variant " + name);
}

TEST(TokenizerDamage, BpeFiles) {
  Json file = case_of("few bytes, dropped");
  file["model"]["vocab"]["ab"] = file["model"]["vocab"].size();
  file["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  expect_errors_or_tokenizers(file, mutations() / 3);
}

TEST(TokenizerDamage, UnigramFiles) {
  Json file = case_of("XLM-RoBERTa");
  Json& vocab = file["model"]["vocab"];
  vocab.erase(vocab.begin() + 40, vocab.end());
  expect_errors_or_tokenizers(file, mutations() / 3);
}

TEST(TokenizerDamage, DeepNestingIsRefused) {
  EXPECT_TRUE(refused(std::string(1000000, '[').insert(0, "{\"model\":")));
  std::string deep = "{\"model\":";
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_TRUE(refused(deep + "1" + std::string(100001, '}')));
}

TEST(TokenizerDamage, SentencePieceModels) {
  const std::string& model = test::small_tokenizer().serialised();
  const auto table = model.find("nmt_nfkc");
  ASSERT_NE(table, std::string::npos);
  for (uint64_t i = 0; i < mutations() / 10 && !HasFailure(); ++i) {
    Draws draw(i);
    // The head holds the pieces and the options; the large table behind it is only copied.
    std::string head = model.substr(0, table + 64), tail = model.substr(table + 64);
    damage_bytes(head, draw);
    try {
      const HeapBytes damaged(head + tail);
      EXPECT_TRUE(Json::accept(sentencepiece_tokenizer_json(damaged.view(), "a model")));
      if (i % 10 == 0) refused(xlm_roberta_tokenizer_json(damaged.view(), "a model"));
    } catch (const Error& error) {
      EXPECT_GT(std::string(error.what()).size(), 10u);
    }
  }
}

}  // namespace
}  // namespace amur
