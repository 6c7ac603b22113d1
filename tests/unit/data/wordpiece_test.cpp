// WordPiece against Hugging Face's tokenizers, through what fixtures/*.py wrote; and what a
// tokenizer.json may not ask for.
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/core/error.h"
#include "src/train/data/bert_text.h"
#include "src/train/data/tokenizer.h"
#include "src/train/data/tokenizer_json.h"
#include "tests/unit/data/data_fixture.h"

namespace amur {
namespace {

using test::encoded;
using test::Ids;
using Json = nlohmann::json;

Json fixture(const std::string& name) {
  return Json::parse(test::read_file(AMUR_TEST_DATA "/fixtures/" + name));
}

const Json& cases() {
  static const Json json = fixture("wordpiece_cases.json");
  return json;
}

// The tokenizer.json of a variant, with the vocabulary that all of them share.
Json file_of(const std::string& name) {
  for (const Json& variant : cases()["variants"]) {
    if (variant["name"] != name) continue;
    Json file = variant["file"];
    for (size_t id = 0; id < cases()["vocab"].size(); ++id)
      file["model"]["vocab"][cases()["vocab"][id].get<std::string>()] = id;
    return file;
  }
  throw std::logic_error("no variant " + name);
}

std::unique_ptr<Tokenizer> tokenizer_of(const Json& file) {
  return Tokenizer::from_bytes(file.dump(), "tokenizer.json");
}

TEST(WordPiece, GivesTheIdsOfTheReference) {
  for (const Json& variant : cases()["variants"]) {
    const auto tokenizer = tokenizer_of(file_of(variant["name"]));
    EXPECT_STREQ(tokenizer->kind(), "wordpiece");
    for (size_t i = 0; i < cases()["texts"].size(); ++i) {
      const auto text = cases()["texts"][i].get<std::string>();
      Ids want = variant["ids"][i].get<Ids>();
      // Every text has a token.
      if (want.empty()) want = {1};
      EXPECT_EQ(encoded(*tokenizer, text), want) << variant["name"] << ": " << text.substr(0, 80);
    }
    for (size_t i = 0; i < variant["decoded"].size(); ++i)
      EXPECT_EQ(tokenizer->decode(variant["ids"][i].get<Ids>()), variant["decoded"][i]);
  }
}

TEST(WordPiece, NormalisesEveryCodePointAsTheReference) {
  constexpr char32_t kBlock = 4096;
  for (const Json& set : fixture("bert_text_sums.json")) {
    const BertNormalizer normalizer(
        {set["clean_text"], set["handle_chinese_chars"], set["strip_accents"], set["lowercase"]});
    for (char32_t first = 0; first < 0x110000; first += kBlock) {
      // Of the planes without characters, one block in sixteen.
      if (first >= 0x40000 && first % 0x10000 != 0) continue;
      uLong sum = 0;
      std::string normal, line;
      for (char32_t code = first; code < first + kBlock; ++code) {
        if (code >= 0xd800 && code < 0xe000) continue;
        std::string c;
        if (code < 0x80) {
          c = {static_cast<char>(code)};
        } else if (code < 0x800) {
          c = {static_cast<char>(0xc0 | code >> 6)};
        } else if (code < 0x10000) {
          c = {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63))};
        } else {
          c = {static_cast<char>(0xf0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
               static_cast<char>(0x80 | (code >> 6 & 63))};
        }
        if (code >= 0x80) c.push_back(static_cast<char>(0x80 | (code & 63)));
        normal.clear();
        normalizer.append("A" + c + "b \u0301" + c + "\u0316 " + c + c, normal);
        line = normal + '\n';
        const char* bar = "";
        for_each_bert_word(normal, [&](std::string_view word) {
          line += bar;
          line += word;
          bar = "|";
          return true;
        });
        line += '\n';
        sum =
            crc32(sum, reinterpret_cast<const Bytef*>(line.data()), static_cast<uInt>(line.size()));
      }
      EXPECT_EQ(sum, set["sums"][first / kBlock].get<uLong>())
          << "code points from " << static_cast<uint32_t>(first);
    }
  }
}

TEST(WordPiece, BytesThatAreNoUtf8AreReplacementCharacters) {
  const auto cleaning = tokenizer_of(file_of("uncased"));
  EXPECT_EQ(encoded(*cleaning, "eng\xFFlish \xE2\x82"), encoded(*cleaning, "english"));
  EXPECT_EQ(encoded(*cleaning, "\xED\xA0\x80 \xC0\x80"), encoded(*cleaning, ""));
  std::string normal;
  BertNormalizer({false, false, false, false}).append("a\xFF\xE2\x82z\xF0\x9F\x98", normal);
  EXPECT_EQ(normal, "a\uFFFD\uFFFDz\uFFFD");
}

TEST(WordPiece, CutsBetweenTheMarkersAtEveryLength) {
  for (const char* name : {"uncased", "no normalizer", "added tokens", "text as it is"}) {
    const auto tokenizer = tokenizer_of(file_of(name));
    const size_t begin = name == std::string("uncased") || name == std::string("added tokens");
    const size_t end = name == std::string("text as it is") ? 0 : 2 - begin;
    for (const size_t t : {size_t{0}, size_t{3}, size_t{30}, size_t{33}}) {
      const auto text = cases()["texts"][t].get<std::string>();
      const Ids whole = encoded(*tokenizer, text);
      for (size_t limit = begin + end + 1; limit < whole.size() + 3; ++limit) {
        Ids ids = {42};
        EXPECT_EQ(tokenizer->encode(text, static_cast<int64_t>(limit), ids), limit < whole.size());
        Ids want = {42};
        const size_t kept = std::min(limit, whole.size()) - end;
        want.insert(want.end(), whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept));
        want.insert(want.end(), whole.end() - static_cast<std::ptrdiff_t>(end), whole.end());
        EXPECT_EQ(ids, want) << name << ", " << limit << " of " << whole.size();
      }
    }
  }
}

TEST(WordPiece, LongTextsAreCutAtBlanksOnly) {
  // Parts of a text are normalised one by one; the ids are those of the words one by one.
  const auto tokenizer = tokenizer_of(file_of("uncased"));
  std::string text;
  Ids want = {2};
  for (int i = 0; i < 3000; ++i) {
    const std::string word = i % 7 == 0   ? "cafe\u0301"
                             : i % 3 == 0 ? "\u010de\u0161tina"
                                          : "Deutsch,";
    text += word + (i % 5 == 0 ? "\n" : i % 11 == 0 ? "\u00a0" : " ");
    const Ids ids = encoded(*tokenizer, word);
    want.insert(want.end(), ids.begin() + 1, ids.end() - 1);
  }
  want.push_back(3);
  EXPECT_EQ(encoded(*tokenizer, text), want);
  // One run of marks and letters without any blank.
  std::string run;
  for (int i = 0; i < 3000; ++i) run += "e\u0301\u0323\u0915\u093c";
  EXPECT_EQ(encoded(*tokenizer, run), (Ids{2, 1, 3}));
  std::string normal;
  BertNormalizer({true, true, true, true}).append(run, normal);
  EXPECT_EQ(normal.size(), 3000u * 4);  // e and the letter, without its mark
}

TEST(WordPiece, SavedBytesGiveTheSameIdsFromManyThreads) {
  const auto tokenizer = tokenizer_of(file_of("added tokens"));
  const auto copy = Tokenizer::from_bytes(tokenizer->serialised(), "copy");
  EXPECT_EQ(copy->serialised(), tokenizer->serialised());
  EXPECT_EQ(copy->vocab_size(), 905);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i)
        for (const Json& text : cases()["texts"])
          wrong += encoded(*copy, text.get<std::string>()) !=
                   encoded(*tokenizer, text.get<std::string>());
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(WordPiece, HasNothingToSample) {
  Ids ids;
  try {
    tokenizer_of(file_of("uncased"))->encode_sampled("a", 8, 0.5, RandomKey(1), ids);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("data.subword_sampling"), std::string::npos);
  }
  DataConfig config;
  config.tokenizer = TokenizerKind::wordpiece;
  EXPECT_THROW(Tokenizer::train(config, [](std::string&) { return false; }), UsageError);
}

// What the file says instead, and what the message must name. `usage`: Amur does not do it;
// otherwise the file is damaged.
struct Refusal {
  const char *pointer, *value, *named;
  bool usage;
};
const Refusal kRefusals[] = {
    {"/version", "\"2.0\"", "version is \"2.0\"", true},
    {"/model/type", "\"WordLevel\"", "model.type is \"WordLevel\"", true},
    {"/model/unk_token", "\"none\"", "model.vocab lacks the unk_token 'none'", false},
    {"/model/unk_token", "null", "model.unk_token is no text", false},
    {"/model/vocab/[PAD]", "-1", "model.vocab gives '[PAD]' no id", false},
    {"/model/vocab/[PAD]", "4294967296", "model.vocab gives '[PAD]' no id", false},
    {"/model/vocab/[PAD]", "7", "the id 7 of another token", false},
    {"/model/vocab", "[]", "model.vocab is no object", false},
    {"/model/max_input_chars_per_word", "1.5", "max_input_chars_per_word is no whole", false},
    {"/normalizer/type", "\"NFC\"", "normalizer.type is \"NFC\"", true},
    {"/normalizer/lowercase", "1", "normalizer.lowercase is neither", false},
    {"/pre_tokenizer", "null", "pre_tokenizer is null", true},
    {"/pre_tokenizer/type", "\"Whitespace\"", "pre_tokenizer.type is \"Whitespace\"", true},
    {"/post_processor/type", "\"Bert\"", "post_processor.type is \"Bert\"", true},
    {"/post_processor/single/0/SpecialToken/type_id", "1", "single[0].SpecialToken.type_id", true},
    {"/post_processor/single/0/SpecialToken/id", "\"[X]\"", "has no member '[X]'", false},
    {"/post_processor/single/1/Sequence/id", "\"B\"", "single[1].Sequence", true},
    {"/post_processor/single", "[]", "post_processor.single has no place", false},
    {"/post_processor/special_tokens/[CLS]/ids/0", "99999", "which is no token's", false},
    {"/decoder/type", "\"BPEDecoder\"", "decoder.type is \"BPEDecoder\"", true},
    {"/truncation", R"({"direction":"Left"})", "truncation.direction is \"Left\"", true},
    {"/added_tokens/2/id", "5", "added_tokens[2].id is not 2", false},
    {"/added_tokens/2/content", "\"[SEP]\"", "added_tokens[2].id is not 3", false},
    {"/added_tokens/2/content", "\"\"", "added_tokens[2].content is empty", false},
    {"/added_tokens/2/lstrip", "0", "added_tokens[2].lstrip is neither", false},
    {"/added_tokens/5", R"({"id":900,"content":"\u200b\ufeff","single_word":false,"lstrip":false,
                            "rstrip":false,"normalized":true,"special":false})",
     "added_tokens has", false},
};

TEST(WordPiece, RefusesByNameWhatItDoesNotDo) {
  for (const Refusal& r : kRefusals) {
    Json file = file_of("uncased");
    file[Json::json_pointer(r.pointer)] = Json::parse(r.value);
    const auto [message, usage] = test::refused([&] { tokenizer_of(file); });
    EXPECT_NE(message.find(r.named), std::string::npos) << r.pointer << ": " << message;
    EXPECT_EQ(message.find("tokenizer.json: "), 0u) << message;
    EXPECT_EQ(usage, r.usage) << message;
  }
  EXPECT_THROW(Tokenizer::from_bytes(" {", "tokenizer.json"), IoError);
  EXPECT_THROW(Tokenizer::from_bytes("{}", "tokenizer.json"), IoError);
}

TEST(WordPiece, TruncationAndPaddingOfTheFileAreNotObeyed) {
  Json file = file_of("uncased");
  file["truncation"] = {
      {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 0}, {"direction", "Right"}};
  file["padding"] = {{"strategy", {{"Fixed", 128}}}};
  const auto text = cases()["texts"][0].get<std::string>();
  EXPECT_EQ(encoded(*tokenizer_of(file), text), encoded(*tokenizer_of(file_of("uncased")), text));
}

std::string vocab_txt() {
  std::string text;
  for (const Json& token : cases()["vocab"]) text += token.get<std::string>() + "\n";
  return text;
}

TEST(WordPieceJson, VocabTxtGivesTheSameTokenizer) {
  const Json whole = Json::parse(wordpiece_tokenizer_json(vocab_txt(), "", "model"));
  Json want = file_of("uncased");
  EXPECT_EQ(whole["post_processor"]["pair"].size(), 5u);
  want["post_processor"]["pair"] = whole["post_processor"]["pair"];
  EXPECT_EQ(whole, want);
}

TEST(WordPieceJson, ObeysTheOptionsOfTokenizerConfig) {
  const auto made = [](const Json& config, std::string vocab = vocab_txt()) {
    return Json::parse(wordpiece_tokenizer_json(vocab, config.dump(), "model"));
  };
  Json file = made({{"do_lower_case", false},
                    {"tokenize_chinese_chars", false},
                    {"strip_accents", true},
                    {"tokenizer_class", "DistilBertTokenizerFast"}});
  EXPECT_EQ(file["normalizer"],
            Json::parse(R"({"type":"BertNormalizer","clean_text":true,"lowercase":false,
                            "handle_chinese_chars":false,"strip_accents":true})"));
  // Other special tokens, as an object and as texts, and one that is only in the list.
  file = made(Json::parse(R"({"cls_token": {"content": "e", "lstrip": true}, "sep_token": "t",
                              "added_tokens_decoder": {"900": {"content": "<x>", "special": false,
                                                               "normalized": true}}})"));
  const Ids ids = encoded(*tokenizer_of(file), "<x>");
  const auto id_of = [](const char* token) {
    const auto& vocab = cases()["vocab"];
    return static_cast<int32_t>(std::find(vocab.begin(), vocab.end(), token) - vocab.begin());
  };
  EXPECT_EQ(ids, (Ids{id_of("e"), 900, id_of("t")}));
  for (const Json& token : file["added_tokens"])
    EXPECT_EQ(token["lstrip"], token["content"] == "e");

  EXPECT_THROW(made({{"tokenizer_class", "RobertaTokenizer"}}), UsageError);
  EXPECT_THROW(made({{"do_lower_case", "yes"}}), IoError);
  EXPECT_THROW(made({{"mask_token", "none such"}}), IoError);
  EXPECT_THROW(made({}, "[UNK]\n[CLS]\n\xff\n[SEP]\n[PAD]\n[MASK]\n"), IoError);
  EXPECT_THROW(made({}, ""), IoError);
}

TEST(SentencePieceJson, HoldsTheModel) {
  const Tokenizer& tokenizer = test::small_tokenizer();
  const Json file = Json::parse(sentencepiece_tokenizer_json(tokenizer.serialised(), "a model"));
  const Json& vocab = file["model"]["vocab"];
  ASSERT_EQ(static_cast<int64_t>(vocab.size()), tokenizer.vocab_size());
  EXPECT_EQ(file["model"]["unk_id"], 0);
  EXPECT_EQ(file["model"]["byte_fallback"], false);
  for (size_t id = 3; id < vocab.size(); ++id) {
    std::string piece = vocab[id][0];
    const double score = vocab[id][1];
    EXPECT_LT(score, 0);
    EXPECT_EQ(score * 256, std::round(score * 256));  // so that sums are exact in any precision
    if (piece.starts_with("\u2581")) piece.erase(0, 3);
    EXPECT_EQ(tokenizer.decode({static_cast<int32_t>(id)}), piece);
  }
  for (int id : {0, 1, 2}) {
    EXPECT_EQ(file["added_tokens"][static_cast<size_t>(id)]["id"], id);
    EXPECT_EQ(file["added_tokens"][static_cast<size_t>(id)]["special"], true);
  }
  EXPECT_EQ(file["post_processor"]["single"],
            Json::parse(R"([{"SpecialToken":{"id":"<s>","type_id":0}},
                            {"Sequence":{"id":"A","type_id":0}},
                            {"SpecialToken":{"id":"</s>","type_id":0}}])"));
  EXPECT_EQ(file["post_processor"]["special_tokens"]["</s>"]["ids"], Json::array({2}));
  EXPECT_EQ(file["pre_tokenizer"]["replacement"], "\u2581");
  // The table of the normaliser, as it stands in the model.
  const Json& steps = file["normalizer"]["normalizers"];
  const auto table = std::find_if(steps.begin(), steps.end(),
                                  [](const Json& step) { return step["type"] == "Precompiled"; });
  ASSERT_NE(table, steps.end());
  std::string bytes;
  uint32_t bits = 0, held = 0;
  for (const char c : (*table)["precompiled_charsmap"].get<std::string>()) {
    const size_t digit =
        std::string_view("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
            .find(c);
    if (digit == std::string_view::npos) continue;  // =
    bits = bits << 6 | static_cast<uint32_t>(digit);
    held += 6;
    if (held >= 8) bytes.push_back(static_cast<char>(bits >> (held -= 8) & 255));
  }
  EXPECT_GT(bytes.size(), 100000u);
  EXPECT_NE(tokenizer.serialised().find(bytes), std::string::npos);
}

TEST(SentencePieceJson, RefusesOtherAndDamagedModels) {
  const std::string& model = test::small_tokenizer().serialised();
  EXPECT_THROW(sentencepiece_tokenizer_json("", "a model"), IoError);
  EXPECT_THROW(sentencepiece_tokenizer_json("no model at all", "a model"), IoError);
  // The last of a field twice counts: one that says other things is put behind.
  const auto with = [&](std::string field) { return model + field; };
  const auto refused = [&](const std::string& bytes) {
    EXPECT_THROW(sentencepiece_tokenizer_json(bytes, "a model"), UsageError);
  };
  refused(with({0x12, 0x02, 0x18, 0x02}));                   // model_type BPE
  refused(with({0x1a, 0x02, 0x18, 0x00}));                   // no add_dummy_prefix
  refused(with({0x0a, 0x05, 0x0a, 0x01, 'x', 0x18, 0x04}));  // a user-defined piece
  EXPECT_THROW(sentencepiece_tokenizer_json(with({0x0a, 0x7f}), "a model"), IoError);
}

}  // namespace
}  // namespace amur
