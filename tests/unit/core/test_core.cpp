#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/error.h"
#include "src/core/hash.h"
#include "src/core/random.h"
#include "src/core/tensor.h"

namespace amur {
namespace {

void expect_words(const Philox& p, std::array<uint32_t, 4> expected) {
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(p.v[i], expected[i]) << i;
}

// The known answers published with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  expect_words(philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint64_t ones = ~uint64_t{0};
  expect_words(philox(ones, ones, ones), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect_words(philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu),
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(RandomKey, FoldsAreOrderedAndDistinct) {
  const RandomKey key(7);
  EXPECT_NE(key.fold(1).fold(2).value(), key.fold(2).fold(1).value());
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 1000; ++i) seen.insert(key.fold(i).value());
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(key.fold(3).value(), RandomKey(7).fold(3).value());
}

TEST(RandomKey, Distributions) {
  const RandomKey key(11);
  const int n = 200000;
  double sum = 0, normal_sum = 0, normal_square = 0;
  std::vector<int> bins(7);
  for (int i = 0; i < n; ++i) {
    const uint64_t counter = static_cast<uint64_t>(i);
    const double u = key.uniform(counter);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    const double z = key.normal(counter);
    ASSERT_TRUE(std::isfinite(z));
    normal_sum += z;
    normal_square += z * z;
    const uint64_t below = key.below(counter, 7);
    ASSERT_LT(below, 7u);
    ++bins[below];
  }
  // Five standard deviations.
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(normal_sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(normal_square / n, 1, 5 * std::sqrt(2.0 / n));
  for (int bin : bins) EXPECT_NEAR(bin, n / 7.0, 5 * std::sqrt(n / 7.0));
}

TEST(KeyedPermutation, IsAPermutation) {
  for (const uint64_t n : {1u, 2u, 3u, 4u, 5u, 63u, 64u, 65u, 1000u, 65537u}) {
    const KeyedPermutation permutation(RandomKey(5), n);
    EXPECT_EQ(permutation.size(), n);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t j = permutation(i);
      ASSERT_LT(j, n);
      ASSERT_FALSE(seen[j]) << n << ": " << j << " twice";
      seen[j] = true;
    }
    EXPECT_THROW(permutation(n), InternalError);
  }
}

TEST(KeyedPermutation, DependsOnTheKeyAndMixes) {
  const uint64_t n = 10000;
  const KeyedPermutation a(RandomKey(1), n), b(RandomKey(2), n);
  uint64_t same = 0, fixed = 0;
  double distance = 0;
  for (uint64_t i = 0; i < n; ++i) {
    same += a(i) == b(i);
    fixed += a(i) == i;
    distance += std::abs(static_cast<double>(a(i)) - static_cast<double>(i));
  }
  EXPECT_LT(same, 20u);   // one is expected
  EXPECT_LT(fixed, 20u);  // likewise
  // |i - j| of two independent uniform numbers is n/3 on average, with deviation n/sqrt(18).
  EXPECT_NEAR(distance / n, n / 3.0, 5 * n / std::sqrt(18.0 * n));
}

TEST(KeyedPermutation, HugeSizes) {
  const uint64_t n = uint64_t{1} << 40;
  const KeyedPermutation permutation(RandomKey(3), n);
  std::set<uint64_t> seen;
  for (uint64_t i = n - 1000; i < n; ++i) {
    EXPECT_LT(permutation(i), n);
    seen.insert(permutation(i));
  }
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(Hash, KnownAnswers) {
  EXPECT_EQ(fnv1a(""), 0xcbf29ce484222325u);
  EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171f73967e8u);
  EXPECT_EQ(fnv1a("bar", fnv1a("foo")), fnv1a("foobar"));
  // SplitMix64 from seed 0: the finaliser of its first two states.
  EXPECT_EQ(mix64(0x9e3779b97f4a7c15u), 0xe220a8397b1dcdafu);
  EXPECT_EQ(mix64(2 * 0x9e3779b97f4a7c15u), 0x6e789e6aa1b965f4u);
}

TEST(BFloat16, RoundsToNearestEven) {
  const auto bits = [](uint32_t b) { return bf16(std::bit_cast<float>(b)).bits; };
  EXPECT_EQ(bits(0x3f800000), 0x3f80);
  EXPECT_EQ(bits(0x3f808000), 0x3f80);  // half way, to even
  EXPECT_EQ(bits(0x3f818000), 0x3f82);  // half way, to even
  EXPECT_EQ(bits(0x3f808001), 0x3f81);
  EXPECT_EQ(bits(0x7f7fffff), 0x7f80);  // overflows to infinity
  EXPECT_EQ(bits(0xff800000), 0xff80);
  EXPECT_EQ(bits(0x80000000), 0x8000);
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t b = 0; b < 0x10000; ++b) {  // every bf16 survives
    const float value = std::bit_cast<float>(b << 16);
    if (std::isnan(value)) continue;
    ASSERT_EQ(bf16(value).bits, b);
  }
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(dtype_of<int64_t>), 8u);
  EXPECT_STREQ(name_of(DType::f64), "f64");
  EXPECT_EQ(parameter_dtype(DType::bf16), DType::f32);
  EXPECT_EQ(parameter_dtype(DType::f64), DType::f64);
  EXPECT_THROW(dispatch_float(DType::i32, "op", []<class T>() {}), InternalError);
  EXPECT_THROW(dispatch_f32_f64(DType::bf16, "op", []<class T>() {}), InternalError);
}

TEST(Shape, ElementsProductsAndText) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.dims(), 3);
  EXPECT_EQ(shape.elements(), 24);
  EXPECT_EQ(shape.product(1, 3), 12);
  EXPECT_EQ(shape.text(), "[2, 3, 4]");
  EXPECT_EQ(shape.with(1, 7), (Shape{2, 7, 4}));
  EXPECT_EQ(Shape().elements(), 1);
  EXPECT_EQ((Shape{0, 5}).elements(), 0);
  EXPECT_NE((Shape{2, 3}), (Shape{2, 3, 1}));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), InternalError);
  EXPECT_THROW((Shape{-1}), InternalError);
  EXPECT_THROW(shape.with(3, 1), InternalError);
}

TEST(TensorViews, SlicesAndReshapes) {
  Tensor t = Tensor::zeros({4, 2, 3}, DType::i32);
  for (int32_t i = 0; i < 24; ++i) t.as<int32_t>()[i] = i;
  const TensorView v = t;
  EXPECT_EQ(v.rows(), 4);
  EXPECT_EQ(v.columns(), 6);
  EXPECT_EQ(v.slice(1, 2).as<int32_t>()[0], 6);
  EXPECT_EQ(v.slice(1, 2).shape(), (Shape{2, 2, 3}));
  EXPECT_EQ(v.slice(4, 0).elements(), 0);
  EXPECT_EQ(v.reshape({24}).shape(), (Shape{24}));
  EXPECT_THROW(v.slice(3, 2), InternalError);
  EXPECT_THROW(v.reshape({5}), InternalError);
  EXPECT_THROW(v.as<float>(), InternalError);
  const ConstTensorView constant = v;
  EXPECT_EQ(constant.raw(), v.raw());
  EXPECT_FALSE(TensorView().defined());
}

TEST(Tensors, OwnAlignAndCount) {
  const size_t before = memory_use(Device::cpu()).now;
  {
    Tensor t({1000}, DType::f32);
    EXPECT_EQ(memory_use(Device::cpu()).now, before + 4000);
    EXPECT_GE(memory_use(Device::cpu()).peak, before + 4000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.view().raw()) % 64, 0u);
    Tensor moved = std::move(t);
    EXPECT_EQ(moved.elements(), 1000);
    moved = Tensor({10}, DType::f64);
    EXPECT_EQ(memory_use(Device::cpu()).now, before + 80);
    const Tensor empty({0, 5}, DType::f32);
    EXPECT_TRUE(empty.defined());
  }
  EXPECT_EQ(memory_use(Device::cpu()).now, before);
}

TEST(Tensors, CopyAndZero) {
  Tensor a = Tensor::zeros({3, 2}, DType::f64), b({3, 2}, DType::f64), other({2, 3}, DType::f64);
  for (int i = 0; i < 6; ++i) a.as<double>()[i] = i;
  copy(b, a);
  EXPECT_EQ(b.as<double>()[5], 5);
  fill_zero(b);
  EXPECT_EQ(b.as<double>()[5], 0);
  EXPECT_THROW(copy(other, a), InternalError);
  EXPECT_THROW(Tensor({1}, DType::f32, Device{Device::Kind::cuda, 0}), UsageError);
}

TEST(Errors, CodesAndCallSites) {
  EXPECT_EQ(UsageError("bad {}", 1).exit_code(), kExitUsage);
  EXPECT_STREQ(UsageError("bad {}", 1).what(), "bad 1");
  EXPECT_EQ(IoError("x").exit_code(), kExitIo);
  EXPECT_EQ(CommError("x").exit_code(), kExitComm);
  EXPECT_EQ(NumericError("x").exit_code(), kExitNumeric);
  try {
    AMUR_CHECK(1 == 2, "{} apples", 3);
    FAIL();
  } catch (const InternalError& e) {
    EXPECT_EQ(e.exit_code(), kExitBug);
    const std::string text = e.what();
    EXPECT_NE(text.find("tests/unit/core/test_core.cpp:"), std::string::npos) << text;
    EXPECT_NE(text.find("3 apples"), std::string::npos) << text;
  }
  EXPECT_EQ((CallSite{"/home/x/amur/src/train/trainer.cpp", 42}).text(),
            "src/train/trainer.cpp:42");
}

}  // namespace
}  // namespace amur
