// What the comparison with Hugging Face's tokenizers drives (test_tokenizers_live.py):
//   amur_tokenize_texts ids FILE MAX_LENGTH   ids of the texts on standard input; the rate on
//                                             standard error
//   amur_tokenize_texts sentencepiece FILE    the tokenizer.json of a SentencePiece model
//   amur_tokenize_texts xlm-roberta FILE      the one that XLM-RoBERTa has of such a model
//   amur_tokenize_texts vocabulary FOLDER     the one of vocab.txt and tokenizer_config.json
//   amur_tokenize_texts train PIECES CASE     a SentencePiece model of the texts on standard input;
//                                             CASE lower folds it
//   amur_tokenize_texts names EVERY           names of languages and countries in all locales that
//                                             ICU knows (from CLDR), every so many of them
// Texts come and go as a 32-bit size and as many bytes, ids as a 32-bit count and as many numbers.
#include <unicode/locid.h>
#include <unicode/unistr.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "src/core/error.h"
#include "src/train/data/tokenizer.h"
#include "src/train/data/tokenizer_json.h"

namespace {

using namespace amur;

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError("cannot open '{}'", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool next_text(std::string& text) {
  uint32_t size = 0;
  if (!std::cin.read(reinterpret_cast<char*>(&size), sizeof(size))) return false;
  text.resize(size);
  return static_cast<bool>(std::cin.read(text.data(), size));
}

void put(const void* bytes, size_t size) {
  std::cout.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
}

void write_ids(const std::string& file, int64_t max_length) {
  const auto tokenizer = Tokenizer::from_bytes(bytes_of(file), file);
  std::vector<std::string> texts;
  for (std::string text; next_text(text);) texts.push_back(text);
  std::vector<std::vector<int32_t>> ids(texts.size());
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < texts.size(); ++i) tokenizer->encode(texts[i], max_length, ids[i]);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  size_t bytes = 0, tokens = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    bytes += texts[i].size();
    tokens += ids[i].size();
    const auto count = static_cast<uint32_t>(ids[i].size());
    put(&count, sizeof(count));
    put(ids[i].data(), ids[i].size() * sizeof(int32_t));
  }
  fmt::print(stderr, "{} texts, {} bytes, {} tokens in {:.3f} s: {:.1f} MB/s, {:.2f} M tokens/s\n",
             texts.size(), bytes, tokens, elapsed.count(),
             static_cast<double>(bytes) / 1e6 / elapsed.count(),
             static_cast<double>(tokens) / 1e6 / elapsed.count());
}

void write_names(int64_t every) {
  int32_t count = 0;
  const icu::Locale* locales = icu::Locale::getAvailableLocales(count);
  int64_t number = 0;
  const auto write = [&](const icu::UnicodeString& name) {
    if (number++ % every != 0) return;
    std::string text;
    name.toUTF8String(text);
    const auto size = static_cast<uint32_t>(text.size());
    put(&size, sizeof(size));
    put(text.data(), text.size());
  };
  icu::UnicodeString name;
  for (int32_t i = 0; i < count; ++i) {
    if (*locales[i].getCountry() != 0) continue;  // mostly the names of the language alone
    for (const char* const* code = icu::Locale::getISOLanguages(); *code; ++code)
      write(icu::Locale(*code).getDisplayLanguage(locales[i], name));
    for (const char* const* code = icu::Locale::getISOCountries(); *code; ++code)
      write(icu::Locale("", *code).getDisplayCountry(locales[i], name));
  }
}

int run(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[1] : "";
  if (what == "ids" && argc == 4) {
    write_ids(argv[2], std::stoll(argv[3]));
  } else if (what == "sentencepiece") {
    std::cout << sentencepiece_tokenizer_json(bytes_of(argv[2]), argv[2]);
  } else if (what == "xlm-roberta") {
    std::cout << xlm_roberta_tokenizer_json(bytes_of(argv[2]), argv[2]);
  } else if (what == "vocabulary") {
    const std::filesystem::path folder(argv[2]);
    std::cout << wordpiece_tokenizer_json(bytes_of(folder / "vocab.txt"),
                                          bytes_of(folder / "tokenizer_config.json"), folder);
  } else if (what == "names") {
    write_names(std::stoll(argv[2]));
  } else if (what == "train" && argc == 4) {
    DataConfig config;
    config.vocab_size = std::stoll(argv[2]);
    config.lower_case = std::string_view(argv[3]) == "lower";
    std::cout << Tokenizer::train(config, next_text)->serialised();
  } else {
    std::cerr << "see the head of tokenize_texts.cpp\n";
    return kExitUsage;
  }
  return std::cout.flush() ? kExitOk : kExitIo;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code();
  }
}
