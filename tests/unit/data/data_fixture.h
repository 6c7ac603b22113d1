// What the data tests share: a scratch folder, a small corpus, and a checksum.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "src/train/data/data.h"

namespace amur::test {

// A new folder, removed with its content at the end.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, std::string_view content) const;
  std::vector<std::string> names() const;

 private:
  std::filesystem::path folder_;
};

std::string read_file(const std::string& path);
// Hexadecimal, FIPS 180-4.
std::string sha256(std::string_view bytes);

// "query 7 ..." TAB "document 7 ..." lines of different lengths.
std::string small_tsv(int lines);
// A vocabulary of about a hundred pieces trained on `small_tsv`.
const Tokenizer& small_tokenizer();

// What f() says when it fails, and whether that is a UsageError; otherwise an IoError. "" where it
// does not fail.
struct Refused {
  std::string message;
  bool usage = false;
};
template <class F>
Refused refused(F&& f) {
  try {
    f();
    return {};
  } catch (const UsageError& error) {
    return {error.what(), true};
  } catch (const IoError& error) {
    return {error.what(), false};
  }
}

using Ids = std::vector<int32_t>;
// Of one text, by default whole.
Ids encoded(const Tokenizer& tokenizer, std::string_view text, int64_t limit = 1 << 20);

}  // namespace amur::test
