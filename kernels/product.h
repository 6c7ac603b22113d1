// Products by what the choice of an algorithm for them on a GPU depends on, and the record of such
// choices (src/core/choices.h). Knows of no GPU and no library.
//
// The number of tokens is another one in each chunk, so that choices are made for ranges of it: all
// numbers of rows up to a bucket, and above the next smaller one, take the choice made at the
// bucket. Buckets are 1, 2, 3, 4, 6, 8, 12, 16, ..: powers of two, and halfway between.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/gemm.h"

namespace amur {

// c = alpha op(a) op(b) [+ bias] + beta c, c [m, n], op(a) [m, k].
struct Product {
  Transpose transpose_a = Transpose::no, transpose_b = Transpose::no;
  int64_t m = 0, n = 0, k = 0;
  DType ab = DType::f32, c = DType::f32;
  bool adds = false;  // beta is not 0
  bool bias = false;  // gemm_bias

  auto operator<=>(const Product&) const = default;
};

// The least bucket that is not less than `rows`, which is at least 1.
int64_t bucket_of(int64_t rows);
// With the rows of a as it is stored (m, or k where it is transposed), which are the tokens in
// every product of a model, in their bucket.
Product in_bucket(Product product);

// "nt 4096 x 2304 x 768 bf16 to bf16 adds bias": a not transposed, b transposed, m x n x k.
std::string to_text(const Product& product);
// Nothing where it is no such text.
std::optional<Product> parse_product(const std::string& text);
// "product/NVIDIA H200/cuBLASLt 13.1.0/nt 4096 x ...", of the product's bucket.
std::string choice_name(const std::string& device, const std::string& library,
                        const Product& product);
inline constexpr const char* kProductChoices = "product/";

// An algorithm of cuBLASLt: its structure as it is, which the version of the library that the
// choice's name has takes back, and for readers its configuration attributes by their numbers
// (CUBLASLT_ALGO_CONFIG_ID is 0): the structure holds more than the attributes say.
struct ProductAlgorithm {
  static constexpr size_t kAttributes = 9, kWords = 8;
  // "id tile split reduction swizzle custom stages inner cluster"
  std::array<int64_t, kAttributes> attributes{};
  std::array<uint64_t, kWords> words{};
  bool operator==(const ProductAlgorithm&) const = default;
};
std::string to_text(const ProductAlgorithm& algorithm);  // "id 66, tile 20, .., words 42 14 .."
std::optional<ProductAlgorithm> parse_algorithm(const std::string& text);

// The place of the candidate with the least median; the first one, which the library would take,
// unless that is beaten by more than kNoise. seconds[i] are the runs of candidate i; none: it
// failed. Nothing where all have.
inline constexpr double kNoise = 0.02;
std::optional<size_t> fastest(std::span<const std::vector<double>> seconds);

}  // namespace amur
