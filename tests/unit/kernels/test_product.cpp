// The record of choices for products: buckets, names, algorithms as text, selection. No GPU.
#include <gtest/gtest.h>

#include "kernels/product.h"

namespace amur {
namespace {

TEST(Product, Buckets) {
  const int64_t buckets[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
  size_t at = 0;
  for (int64_t rows = 1; rows <= 128; ++rows) {
    if (rows > buckets[at]) ++at;
    EXPECT_EQ(bucket_of(rows), buckets[at]) << rows;
  }
  EXPECT_EQ(bucket_of(12289), 16384);
  EXPECT_EQ(bucket_of(12288), 12288);
  EXPECT_THROW(bucket_of(0), InternalError);
}

// The tokens are m in a forward pass, and k where a weight's gradient is summed over them.
TEST(Product, OnlyTheTokensAreInBuckets) {
  const Product forward{.transpose_b = Transpose::yes, .m = 1000, .n = 1000, .k = 1000};
  EXPECT_EQ(in_bucket(forward).m, 1024);
  EXPECT_EQ(in_bucket(forward).n, 1000);
  EXPECT_EQ(in_bucket(forward).k, 1000);
  const Product gradient{.transpose_a = Transpose::yes, .m = 1000, .n = 1000, .k = 1000};
  EXPECT_EQ(in_bucket(gradient).m, 1000);
  EXPECT_EQ(in_bucket(gradient).k, 1024);
}

TEST(Product, TextAndBack) {
  Product p{.m = 4096, .n = 2304, .k = 768, .ab = DType::bf16, .c = DType::f32};
  EXPECT_EQ(to_text(p), "nn 4096 x 2304 x 768 bf16 to f32");
  for (int bits = 0; bits < 16; ++bits) {
    p.transpose_a = (bits & 1) != 0 ? Transpose::yes : Transpose::no;
    p.transpose_b = (bits & 2) != 0 ? Transpose::yes : Transpose::no;
    p.adds = (bits & 4) != 0;
    p.bias = (bits & 8) != 0;
    EXPECT_EQ(parse_product(to_text(p)), p) << to_text(p);
  }
  for (const char* wrong :
       {"", "nn", "nx 1 x 2 x 3 f32 to f32", "nn 1 x 2 x 3 f32 to i32", "nn 1 x 2 x -3 f32 to f32",
        "nn 1 x 2 x 3 f32 to f32 more", "nn 1 x 2 x 3 f32 to f32 bias adds"})
    EXPECT_EQ(parse_product(wrong), std::nullopt) << wrong;
}

TEST(Product, ChunksOfABucketShareAChoice) {
  const auto name = [](int64_t tokens) {
    return choice_name("NVIDIA H200", "cuBLASLt 13.1.0",
                       {.transpose_b = Transpose::yes,
                        .m = tokens,
                        .n = 768,
                        .k = 3072,
                        .ab = DType::bf16,
                        .c = DType::bf16,
                        .bias = true});
  };
  EXPECT_EQ(name(4000),
            "product/NVIDIA H200/cuBLASLt 13.1.0/nt 4096 x 768 x 3072 bf16 to bf16 bias");
  EXPECT_EQ(name(3073), name(4096));
  EXPECT_NE(name(3072), name(4096));
}

TEST(ProductAlgorithm, TextAndBack) {
  const ProductAlgorithm algorithm{{66, 20, 3, 2, 1, 0, 13, 0, 5},
                                   {0x1400000042, 3, ~uint64_t{0}, 0, 0xa, 0, 0, 7}};
  const std::string text = to_text(algorithm);
  EXPECT_EQ(
      text,
      "id 66, tile 20, split 3, reduction 2, swizzle 1, custom 0, stages 13, inner 0, cluster 5, "
      "words 1400000042 3 ffffffffffffffff 0 a 0 0 7");
  EXPECT_EQ(parse_algorithm(text), algorithm);
  for (const std::string& wrong :
       {std::string(), std::string("7"), text + ", more 1", text.substr(0, text.size() - 2),
        "tile" + text.substr(2), text.substr(0, text.find(", words"))})
    EXPECT_EQ(parse_algorithm(wrong), std::nullopt) << wrong;
}

TEST(ProductAlgorithm, TheFastestIsChosenByMedian) {
  using Runs = std::vector<std::vector<double>>;
  EXPECT_EQ(fastest(Runs{}), std::nullopt);
  EXPECT_EQ(fastest(Runs{{}, {}}), std::nullopt);
  EXPECT_EQ(fastest(Runs{{5, 5, 5}, {4, 4, 9}, {6, 1, 6}}), 1u);  // one lucky or slow run is none
  EXPECT_EQ(fastest(Runs{{1, 1, 1}, {0.99, 0.99, 0.99}}), 0u);    // within the noise
  EXPECT_EQ(fastest(Runs{{1, 1, 1}, {0.97, 0.97, 0.97}}), 1u);
  EXPECT_EQ(fastest(Runs{{}, {3, 3, 3}, {2.99, 2.99, 2.99}}), 2u);  // the first failed
  EXPECT_EQ(fastest(Runs{{3, 3, 3}, {2, 2, 2}, {2, 2, 2}}), 1u);
}

}  // namespace
}  // namespace amur
