#include "tests/unit/data/data_fixture.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <fstream>
#include <sstream>

namespace amur::test {

namespace fs = std::filesystem;

ScratchFolder::ScratchFolder() {
  static std::atomic<int> count{0};
  folder_ = fs::temp_directory_path() / fmt::format("amur-test-{}-{}", ::getpid(), count++);
  fs::create_directories(folder_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

std::string ScratchFolder::write(const std::string& name, std::string_view content) const {
  std::ofstream file(path(name), std::ios::binary);
  file << content;
  EXPECT_TRUE(file.good());
  return path(name);
}

std::vector<std::string> ScratchFolder::names() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string sha256(std::string_view bytes) {
  // Round constants and initial state: the fractions of the cube and square roots of primes.
  std::array<uint32_t, 64> k{};
  std::array<uint32_t, 8> h{};
  size_t found = 0;
  for (uint32_t n = 2; found < k.size(); ++n) {
    bool prime = true;
    for (uint32_t d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    if (!prime) continue;
    const auto fraction = [](long double x) {
      return static_cast<uint32_t>((x - std::floor(x)) * 4294967296.0L);
    };
    k[found] = fraction(std::cbrt(static_cast<long double>(n)));
    if (found < h.size()) h[found] = fraction(std::sqrt(static_cast<long double>(n)));
    ++found;
  }
  std::string message(bytes);
  message.push_back('\x80');
  while (message.size() % 64 != 56) message.push_back('\0');
  for (int shift = 56; shift >= 0; shift -= 8)
    message.push_back(static_cast<char>(uint64_t{bytes.size()} * 8 >> shift & 0xff));
  for (size_t block = 0; block < message.size(); block += 64) {
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 64; ++i)
      w[i / 4 % 16] = w[i / 4 % 16] << 8 | static_cast<unsigned char>(message[block + i]);
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    std::array<uint32_t, 8> s = h;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t t1 = s[7] + (std::rotr(s[4], 6) ^ std::rotr(s[4], 11) ^ std::rotr(s[4], 25)) +
                          ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      const uint32_t t2 = (std::rotr(s[0], 2) ^ std::rotr(s[0], 13) ^ std::rotr(s[0], 22)) +
                          ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
    }
    for (size_t i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::string text;
  for (const uint32_t word : h) text += fmt::format("{:08x}", word);
  return text;
}

std::string small_tsv(int lines) {
  constexpr std::array<const char*, 12> kWords = {"river", "forest", "tiger",  "winter",
                                                  "night", "cedar",  "salmon", "bridge",
                                                  "stone", "amber",  "voyage", "lantern"};
  std::string text;
  for (int i = 0; i < lines; ++i) {
    const auto word = [&](int salt) {
      return kWords[RandomKey(7).below(static_cast<uint64_t>(i * 16 + salt), kWords.size())];
    };
    text += fmt::format("query {}", i);
    for (int k = 0; k < i % 5; ++k) text += fmt::format(" {}", word(k));
    text += fmt::format("\tdocument {} about", i);
    for (int k = 0; k < 1 + i % 7; ++k) text += fmt::format(" {}", word(8 + k));
    text += '\n';
  }
  return text;
}

const Tokenizer& small_tokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    DataConfig config;
    config.vocab_size = 200;
    std::istringstream lines(small_tsv(300));
    return Tokenizer::train(
        config, [&](std::string& text) { return static_cast<bool>(std::getline(lines, text)); });
  }();
  return *tokenizer;
}

Ids encoded(const Tokenizer& tokenizer, std::string_view text, int64_t limit) {
  Ids ids;
  tokenizer.encode(text, limit, ids);
  return ids;
}

}  // namespace amur::test
