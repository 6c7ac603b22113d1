// A small data set with everything that makes a contrastive batch hard: texts of uneven length,
// equal texts in different pairs, several positives, hard negatives on some samples only.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "src/core/random.h"

namespace amur::test {

inline std::string small_text(RandomKey key, uint64_t longest) {
  static const char* const kWords[] = {"river", "tiger", "snow",  "forest", "ice", "amur",
                                       "bank",  "paw",   "night", "moon",   "cub", "stone"};
  std::string text;
  const uint64_t words = 1 + key.below(0, longest);
  for (uint64_t w = 0; w < words; ++w) {
    if (w > 0) text += ' ';
    text += kWords[key.below(1 + w, std::size(kWords))];
  }
  return text;
}

// Writes `samples` JSON lines; with `hard`, some samples repeat an earlier query or document, have
// several positives, or bring up to two hard negatives.
inline void write_small_data(const std::string& path, int samples, bool hard) {
  std::ofstream out(path);
  for (int i = 0; i < samples; ++i) {
    const RandomKey key = RandomKey(7).fold(static_cast<uint64_t>(i));
    const int q = hard && i % 5 == 4 ? i - 3 : i, d = hard && i % 7 == 6 ? i - 2 : i;
    const auto text = [&](uint64_t salt, int index, uint64_t longest) {
      return small_text(RandomKey(salt).fold(static_cast<uint64_t>(index)), longest) + " " +
             std::to_string(index);
    };
    out << R"({"query":")" << text(1, q, 4) << R"(","pos":[")" << text(2, d, 9) << '"';
    if (hard && i % 6 == 1) out << R"(,")" << text(2, i + 1, 9) << '"';
    out << R"(],"neg":[)";
    const uint64_t negatives = hard ? key.below(0, 3) : 0;
    for (uint64_t k = 0; k < negatives; ++k)
      out << (k ? "," : "") << '"' << text(3 + k, i, 6) << '"';
    out << "]}\n";
  }
}

// A folder of its own for one rank-0 process, removed at the end.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / (name + "." + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace amur::test
