// BPE and Unigram against Hugging Face's tokenizers, through what fixtures/*.py wrote; and what
// their files may not ask for.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "src/core/error.h"
#include "src/train/data/precompiled_normalizer.h"
#include "src/train/data/sentencepiece_model.h"
#include "src/train/data/tokenizer.h"
#include "src/train/data/tokenizer_json.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::encoded;
using test::Ids;
using Json = nlohmann::json;

constexpr int32_t kUnknown = 3;

const Json& cases() {
  static const Json json =
      Json::parse(test::read_file(AMUR_TEST_DATA "/fixtures/json_tokenizer_cases.json"));
  return json;
}

Json file_of(const std::string& name) {
  for (const Json& variant : cases()["variants"])
    if (variant["name"] == name) return variant["file"];
  throw std::logic_error("no variant " + name);
}

std::unique_ptr<Tokenizer> tokenizer_of(const Json& file) {
  return Tokenizer::from_bytes(file.dump(), "tokenizer.json");
}

TEST(JsonTokenizer, GivesTheIdsOfTheReference) {
  for (const Json& variant : cases()["variants"]) {
    const auto tokenizer = tokenizer_of(variant["file"]);
    EXPECT_STREQ(tokenizer->kind(), variant["file"]["model"]["type"] == "BPE" ? "bpe" : "unigram");
    for (size_t i = 0; i < cases()["texts"].size(); ++i) {
      const auto text = cases()["texts"][i].get<std::string>();
      Ids want = variant["ids"][i].get<Ids>();
      if (want.empty()) want = {kUnknown};  // every text has a token
      EXPECT_EQ(encoded(*tokenizer, text), want) << variant["name"] << ": " << text.substr(0, 80);
    }
    const size_t last = cases()["texts"].size(), decoded = variant["decoded"].size();
    for (size_t i = 0; i < decoded; ++i)
      EXPECT_EQ(tokenizer->decode(variant["ids"][last - decoded + i].get<Ids>()),
                variant["decoded"][i])
          << variant["name"];
  }
}

TEST(JsonTokenizer, CutsBetweenTheMarkersAtEveryLength) {
  for (const char* name : {"RoBERTa", "XLM-RoBERTa"}) {
    const auto tokenizer = tokenizer_of(file_of(name));
    const auto copy = Tokenizer::from_bytes(tokenizer->serialised(), "copy");
    const auto text = cases()["texts"][1].get<std::string>();
    const Ids whole = encoded(*copy, text);
    for (size_t limit = 3; limit < whole.size() + 2; ++limit) {
      Ids ids = {42}, want = {42};
      EXPECT_EQ(tokenizer->encode(text, static_cast<int64_t>(limit), ids), limit < whole.size());
      const size_t kept = std::min(limit, whole.size()) - 1;
      want.insert(want.end(), whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept));
      want.push_back(whole.back());
      EXPECT_EQ(ids, want) << name << ", " << limit << " of " << whole.size();
    }
  }
}

TEST(JsonTokenizer, BytesThatAreNoUtf8AreReplacementCharacters) {
  for (const char* name : {"RoBERTa", "ModernBERT", "XLM-RoBERTa"}) {
    const auto tokenizer = tokenizer_of(file_of(name));
    EXPECT_EQ(encoded(*tokenizer, "a\xFF z\xE2\x82"), encoded(*tokenizer, "a\uFFFD z\uFFFD"));
  }
}

TEST(JsonTokenizer, ClustersAreThoseOfUnicode) {
  const auto ends = [](std::string_view text) {
    std::vector<size_t> all;
    for (size_t at = 0; at < text.size();) all.push_back(at = cluster_end(text, at));
    return all;
  };
  using Ends = std::vector<size_t>;
  EXPECT_EQ(ends("ab\r\nc\n\r"), (Ends{1, 2, 4, 5, 6, 7}));
  EXPECT_EQ(ends("e\u0301\u0323f"), (Ends{5, 6}));
  EXPECT_EQ(ends("\u0001\u0301"), (Ends{1, 3}));
  EXPECT_EQ(ends("\u1100\u1161\u11a8\uac00\u11a8\u1100"), (Ends{9, 15, 18}));
  // Two flags and one half; a family, and pictographs without a joiner.
  EXPECT_EQ(ends("\U0001f1e9\U0001f1ea\U0001f1fa\U0001f1e6\U0001f1e6"), (Ends{8, 16, 20}));
  EXPECT_EQ(ends("\U0001f469\u200d\U0001f469\U0001f469"), (Ends{11, 15}));
  EXPECT_EQ(ends("\U0001f469\U0001f3fd\u200d\U0001f469"), (Ends{15}));
  EXPECT_EQ(ends("a\u200d\U0001f469"), (Ends{4, 8}));
  EXPECT_EQ(ends("\u0600a\u0903"), (Ends{6}));
}

TEST(JsonTokenizer, AVocabularyOfSentencePieceComesBack) {
  constexpr int64_t kLimit = 12;
  const Tokenizer& ours = test::small_tokenizer();
  const auto whole = [&](const Tokenizer& t) {
    return sentencepiece_tokenizer_json(t.serialised(), "model");
  };
  const auto table = [&](const Tokenizer& t) {
    return static_tokenizer_json(t.serialised(), kLimit, "model");
  };
  for (const auto& form : {std::function<std::string(const Tokenizer&)>(whole),
                           std::function<std::string(const Tokenizer&)>(table)}) {
    const std::string file = form(ours);
    const auto back = Tokenizer::from_bytes(file, "file");
    EXPECT_STREQ(back->kind(), "sentencepiece");
    EXPECT_EQ(form(*back), file);
    for (const char* text : {"", "query 7 of many", "document <s> \uff21\u0301 \ufb01x  y", "zzz"})
      EXPECT_EQ(encoded(*back, text), encoded(ours, text)) << text;
    // Of another file it is not said.
    Json changed = Json::parse(file);
    changed["model"]["vocab"][5][1] = -1.2345678901234;
    EXPECT_THROW(Tokenizer::from_bytes(changed.dump(), "file"), UsageError);
  }
}

TEST(JsonTokenizer, XlmRobertaNumbersItsMarkersItself) {
  SentencePieceModel model;
  for (const char* text : {"<unk>", "<s>", "</s>", "\u2581", "a", "\u2581tiger"})
    model.pieces.push_back({text, -static_cast<float>(model.pieces.size()), 1});
  const std::string bytes = write_sentencepiece_model(model);
  const auto tokenizer =
      Tokenizer::from_bytes(xlm_roberta_tokenizer_json(bytes, "model"), "tokenizer.json");
  EXPECT_EQ(tokenizer->vocab_size(), 8);
  EXPECT_EQ(encoded(*tokenizer, "tiger a"), (Ids{0, 6, 4, 5, 2}));
  EXPECT_EQ(encoded(*tokenizer, "x <mask>"), (Ids{0, 4, 3, 7, 2}));
  EXPECT_THROW(xlm_roberta_tokenizer_json("", "model"), IoError);
  EXPECT_THROW(xlm_roberta_tokenizer_json(bytes.substr(0, 20), "model"), IoError);
  model.model_type = 2;
  EXPECT_THROW(xlm_roberta_tokenizer_json(write_sentencepiece_model(model), "model"), UsageError);
}

struct Refusal {
  const char *variant, *pointer, *value, *named;
  bool usage;
};
const Refusal kRefusals[] = {
    {"RoBERTa", "/model/dropout", "0.1", "model.dropout is 0.1", true},
    {"RoBERTa", "/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix is \"</w>\"", true},
    {"RoBERTa", "/model/continuing_subword_prefix", "\"@@\"", "continuing_subword_prefix is", true},
    {"RoBERTa", "/model/byte_fallback", "true", "model.byte_fallback is true", true},
    {"RoBERTa", "/model/unk_token", "\"none\"", "model.unk_token is not in", false},
    {"RoBERTa", "/model/merges/0", "[\"a\"]", "model.merges[0] is no pair", false},
    {"RoBERTa", "/model/merges/0", "\"ab\"", "model.merges[0] is no pair", false},
    {"RoBERTa", "/model/merges/0", "[\"a\",\"\\u4e2d\"]", "not in the vocabulary", false},
    {"RoBERTa", "/model/vocab", "{}", "not in the vocabulary", false},
    {"RoBERTa", "/normalizer", R"({"type":"NFKC"})", "normalizer.type is \"NFKC\"", true},
    {"RoBERTa", "/pre_tokenizer/use_regex", "false", "pre_tokenizer.use_regex is false", true},
    {"RoBERTa", "/pre_tokenizer/type", "\"Split\"", "pre_tokenizer.type is \"Split\"", true},
    {"RoBERTa", "/pre_tokenizer", "null", "pre_tokenizer is null", true},
    {"RoBERTa", "/decoder/type", "\"WordPiece\"", "decoder.type is \"WordPiece\"", true},
    {"RoBERTa", "/post_processor", "null", "neither markers nor an unknown token", false},
    {"RoBERTa", "/post_processor/cls/1", "9999", "post_processor.cls[1] is 9999", false},
    {"XLM-RoBERTa", "/model/unk_id", "null", "model.unk_id is no whole number", false},
    {"XLM-RoBERTa", "/model/unk_id", "100000", "model.unk_id is no whole number", false},
    {"XLM-RoBERTa", "/model/vocab/7", "[\"a\"]", "model.vocab [7] is no piece", false},
    {"XLM-RoBERTa", "/model/byte_fallback", "true", "model.byte_fallback is true", true},
    {"XLM-RoBERTa", "/normalizer/type", "\"NFKC\"", "normalizer.type is \"NFKC\"", true},
    {"XLM-RoBERTa", "/normalizer/precompiled_charsmap", "\"AA\"", "is cut off", false},
    {"XLM-RoBERTa", "/normalizer/precompiled_charsmap", "\"!\"", "is no base64", false},
    {"XLM-RoBERTa", "/normalizer/precompiled_charsmap", "\"////fw==\"", "is damaged", false},
    {"XLM-RoBERTa", "/pre_tokenizer/pretokenizers/1/prepend_scheme", "\"first\"",
     "prepend_scheme is \"first\"", true},
    {"XLM-RoBERTa", "/pre_tokenizer/pretokenizers/1/replacement", "\"_\"", "replacement is", true},
    {"XLM-RoBERTa", "/pre_tokenizer/pretokenizers/0/type", "\"Whitespace\"",
     "a Sequence must be WhitespaceSplit and Metaspace", true},
    {"XLM-RoBERTa", "/decoder/type", "\"ByteLevel\"", "decoder.type is \"ByteLevel\"", true},
    {"Metaspace", "/normalizer/normalizers/1/pattern/Regex", "\"a+\"", "Regex is \"a+\"", true},
    {"Metaspace", "/normalizer/normalizers/2/pattern/String", "\"\"", "String is empty", false},
};

TEST(JsonTokenizer, RefusesByNameWhatItDoesNotDo) {
  for (const Refusal& r : kRefusals) {
    Json file = file_of(r.variant);
    file[Json::json_pointer(r.pointer)] = Json::parse(r.value);
    const auto [message, usage] = test::refused([&] { tokenizer_of(file); });
    EXPECT_NE(message.find(r.named), std::string::npos) << r.pointer << ": " << message;
    EXPECT_EQ(usage, r.usage) << message;
  }
}

}  // namespace
}  // namespace amur
