#include "kernels/product.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>

namespace amur {
namespace {

constexpr std::array<const char*, ProductAlgorithm::kAttributes> kNames = {
    "id", "tile", "split", "reduction", "swizzle", "custom", "stages", "inner", "cluster"};

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    words.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

template <class T>
bool parse_number(std::string_view word, T& value, int base = 10) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value, base);
  return error == std::errc() && end == word.data() + word.size() && value >= 0;
}

bool parse_type(std::string_view word, DType& dtype) {
  for (const DType candidate : {DType::f32, DType::bf16, DType::f64})
    if (word == name_of(candidate)) {
      dtype = candidate;
      return true;
    }
  return false;
}

double median_of(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

int64_t bucket_of(int64_t rows) {
  AMUR_CHECK(rows >= 1 && rows <= int64_t{1} << 40, "{} rows", rows);
  int64_t power = 1;
  while (power < rows) power *= 2;
  return power >= 4 && rows <= power / 4 * 3 ? power / 4 * 3 : power;
}

Product in_bucket(Product product) {
  int64_t& rows = product.transpose_a == Transpose::yes ? product.k : product.m;
  rows = bucket_of(rows);
  return product;
}

std::string to_text(const Product& p) {
  const auto letter = [](Transpose t) { return t == Transpose::yes ? 't' : 'n'; };
  return fmt::format("{}{} {} x {} x {} {} to {}{}{}", letter(p.transpose_a), letter(p.transpose_b),
                     p.m, p.n, p.k, name_of(p.ab), name_of(p.c), p.adds ? " adds" : "",
                     p.bias ? " bias" : "");
}

std::optional<Product> parse_product(const std::string& text) {
  const std::vector<std::string_view> words = words_of(text);
  Product p;
  if (words.size() < 9 || words[0].size() != 2 || words[2] != "x" || words[4] != "x" ||
      words[7] != "to" || !parse_number(words[1], p.m) || !parse_number(words[3], p.n) ||
      !parse_number(words[5], p.k) || !parse_type(words[6], p.ab) || !parse_type(words[8], p.c))
    return std::nullopt;
  p.transpose_a = words[0][0] == 't' ? Transpose::yes : Transpose::no;
  p.transpose_b = words[0][1] == 't' ? Transpose::yes : Transpose::no;
  for (size_t i = 9; i < words.size(); ++i) {
    p.adds = p.adds || words[i] == "adds";
    p.bias = p.bias || words[i] == "bias";
  }
  if (to_text(p) != text) return std::nullopt;
  return p;
}

std::string choice_name(const std::string& device, const std::string& library,
                        const Product& product) {
  return fmt::format("{}{}/{}/{}", kProductChoices, device, library, to_text(in_bucket(product)));
}

std::string to_text(const ProductAlgorithm& algorithm) {
  std::string text;
  for (size_t i = 0; i < kNames.size(); ++i)
    text += fmt::format("{}{} {}", i == 0 ? "" : ", ", kNames[i], algorithm.attributes[i]);
  return text + fmt::format(", words {:x}", fmt::join(algorithm.words, " "));
}

std::optional<ProductAlgorithm> parse_algorithm(const std::string& text) {
  std::string plain = text;
  std::erase(plain, ',');
  const std::vector<std::string_view> words = words_of(plain);
  constexpr size_t kFirst = 2 * kNames.size() + 1;
  ProductAlgorithm algorithm;
  if (words.size() != kFirst + algorithm.words.size() || words[kFirst - 1] != "words")
    return std::nullopt;
  for (size_t i = 0; i < kNames.size(); ++i)
    if (words[2 * i] != kNames[i] || !parse_number(words[2 * i + 1], algorithm.attributes[i]))
      return std::nullopt;
  for (size_t i = 0; i < algorithm.words.size(); ++i)
    if (!parse_number(words[kFirst + i], algorithm.words[i], 16)) return std::nullopt;
  return algorithm;
}

std::optional<size_t> fastest(std::span<const std::vector<double>> seconds) {
  constexpr double kFailed = std::numeric_limits<double>::infinity();
  std::vector<double> medians;
  for (const std::vector<double>& runs : seconds)
    medians.push_back(runs.empty() ? kFailed : median_of(runs));
  const auto least = std::min_element(medians.begin(), medians.end());
  if (least == medians.end() || *least == kFailed) return std::nullopt;
  if ((1 - kNoise) * medians.front() <= *least) return 0;
  return static_cast<size_t>(least - medians.begin());
}

}  // namespace amur
