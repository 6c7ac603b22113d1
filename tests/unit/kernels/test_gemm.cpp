#include <thread>

#include "kernels/cpu/gemm.h"
#include "kernels/elementwise.h"
#include "kernels/product.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

// The dtype of the case is that of the factors.
class GemmTest : public KernelTest {
 protected:
  // What they may be multiplied into.
  std::vector<DType> result_types() const {
    if (dtype() == DType::bf16) return {DType::f32, DType::bf16};
    return {dtype()};
  }
};
constexpr Transpose kBoth[] = {Transpose::no, Transpose::yes};

Doubles oracle(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const Doubles& a,
               const Doubles& b, double beta, const Doubles& c) {
  Doubles out(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (size_t l = 0; l < k; ++l)
        sum += (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]);
      out[i * n + j] = alpha * sum + (beta == 0 ? 0 : beta * c[i * n + j]);
    }
  return out;
}

TEST_P(GemmTest, MatchesTheDefinition) {
  for (const DType c_type : result_types()) {
    for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                  {5, 1, 7},
                                  {1, 9, 64},
                                  {33, 17, 5},
                                  {64, 96, 128},
                                  {512, 40, 64},
                                  {130, 65, 257}}) {
      for (const Transpose ta : kBoth) {
        for (const Transpose tb : kBoth) {
          const bool a_turned = ta == Transpose::yes, b_turned = tb == Transpose::yes;
          const Tensor a = random_tensor(a_turned ? Shape{k, m} : Shape{m, k}, dtype(), 1);
          const Tensor b = random_tensor(b_turned ? Shape{n, k} : Shape{k, n}, dtype(), 2);
          for (const auto& [alpha, beta] :
               {std::pair<double, double>{1, 0}, {1, 1}, {0.035, 1}, {-2, 0.5}, {0.75, 0}}) {
            Tensor c =
                beta == 0 ? filled({m, n}, c_type, std::nan("")) : random_tensor({m, n}, c_type, 3);
            const Doubles expected = oracle(a_turned, b_turned, static_cast<size_t>(m),
                                            static_cast<size_t>(n), static_cast<size_t>(k), alpha,
                                            to_doubles(a), to_doubles(b), beta, to_doubles(c));
            gemm(ta, tb, alpha, a, b, beta, c);
            const double tolerance =
                std::max(rounding(c_type), 60 * rounding(parameter()) * std::sqrt(k));
            expect_near(c, expected, tolerance,
                        fmt::format("{} {} {}x{}x{} {} {}", name_of(dtype()), name_of(c_type), m, n,
                                    k, alpha, beta));
          }
        }
      }
    }
  }
}

// On a GPU: what is measured is taken, keeps its bits when it is read back, and is not measured
// again.
TEST_P(GemmTest, MeasuredAlgorithms) {
  if (target().device == Device::cpu()) {
    EXPECT_THROW(measure_products({}, {}, Device::cpu()), InternalError);
    return;
  }
  constexpr int64_t kTokens = 90, kOut = 96, kIn = 64;  // 90 is in the bucket of 96
  for (const DType c_type : result_types()) {
    const Product forward{.transpose_b = Transpose::yes,
                          .m = kTokens,
                          .n = kOut,
                          .k = kIn,
                          .ab = dtype(),
                          .c = c_type};
    const Product gradient{.transpose_a = Transpose::yes,
                           .m = kOut,
                           .n = kIn,
                           .k = kTokens,
                           .ab = dtype(),
                           .c = c_type,
                           .adds = true};
    Product smaller = forward;  // of the same bucket
    smaller.m = 70;
    const Product products[] = {forward, gradient, smaller, forward};
    const auto chosen = measure_products(products, {}, target().device);
    ASSERT_EQ(chosen.size(), 2u);
    for (const auto& [name, value] : chosen) {
      EXPECT_TRUE(name.starts_with(kProductChoices)) << name;
      EXPECT_TRUE(parse_algorithm(value)) << value;
    }
    EXPECT_TRUE(measure_products(products, chosen, target().device).empty());

    const Tensor x = random_tensor({kTokens, kIn}, dtype(), 1);
    const Tensor w = random_tensor({kOut, kIn}, dtype(), 2);
    const Tensor dy = random_tensor({kTokens, kOut}, dtype(), 3);
    const auto compute = [&](Tensor& y, Tensor& dw) {
      y = filled({kTokens, kOut}, c_type, std::nan(""));
      dw = random_tensor({kOut, kIn}, c_type, 4);
      gemm(Transpose::no, Transpose::yes, 1, x, w, 0, y);
      gemm(Transpose::yes, Transpose::no, 0.5, dy, x, 1, dw);
    };
    Tensor y, dw, y_again, dw_again;
    use_product_choices(chosen);
    compute(y, dw);
    use_product_choices({});  // as after a restart
    use_product_choices(chosen);
    compute(y_again, dw_again);
    EXPECT_TRUE(same_bits(y, y_again));
    EXPECT_TRUE(same_bits(dw, dw_again));
    const double tolerance = std::max(rounding(c_type), 600 * rounding(parameter()));
    expect_near(y, oracle(false, true, kTokens, kOut, kIn, 1, to_doubles(x), to_doubles(w), 0, {}),
                tolerance, "forward");
    expect_near(dw,
                oracle(true, false, kOut, kIn, kTokens, 0.5, to_doubles(dy), to_doubles(x), 1,
                       to_doubles(random_tensor({kOut, kIn}, c_type, 4))),
                tolerance, "gradient");
    // Words that are no algorithm, and one that no library has, are passed over.
    ProductAlgorithm none;
    none.words.fill(~uint64_t{0});
    auto damaged = chosen;
    damaged.begin()->second = "as fast as possible";
    damaged.rbegin()->second = to_text(none);
    use_product_choices(damaged);
    compute(y_again, dw_again);
    expect_near(y_again, to_doubles(y), 2 * tolerance, "without choices");
    use_product_choices({});
  }
}

TEST_P(GemmTest, BiasInOnePass) {
  for (const DType c_type : result_types()) {
    for (const auto& [m, n, k] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {7, 33, 5}, {64, 96, 128}, {5, 3, 0}}) {
      const Tensor a = random_tensor({m, k}, dtype(), 1), b = random_tensor({n, k}, dtype(), 2);
      const Tensor bias = random_tensor({n}, parameter_dtype(c_type), 3);
      Tensor c = filled({m, n}, c_type, std::nan(""));
      const Doubles added = to_doubles(bias);
      Doubles expected = oracle(false, true, static_cast<size_t>(m), static_cast<size_t>(n),
                                static_cast<size_t>(k), 1, to_doubles(a), to_doubles(b), 0, {});
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i % added.size()];
      gemm_bias(Transpose::no, Transpose::yes, a, b, bias, c);
      // Of what is rounded before the two cancel.
      const double tolerance =
          std::max(2 * rounding(c_type), 60 * rounding(parameter())) * std::sqrt(k + 1);
      expect_near(c, expected, tolerance,
                  fmt::format("bias {} {}x{}x{}", name_of(c_type), m, n, k));
      if (k > 0 && c.device() == Device::cpu()) {  // two passes there
        Tensor two = empty({m, n}, c_type);
        gemm(Transpose::no, Transpose::yes, 1, a, b, 0, two);
        add_bias(bias, two);
        EXPECT_TRUE(same_bits(c, two));
      }
    }
  }
}

// Large enough for the library that serves several threads.
TEST(Gemm, LargeProductsOnTwoThreads) {
  const int64_t m = 450, n = 400, k = 400;
  set_compute_threads(2);
  for (const Transpose ta : kBoth) {
    for (const Transpose tb : kBoth) {
      const bool a_turned = ta == Transpose::yes, b_turned = tb == Transpose::yes;
      const Tensor a = random_tensor(a_turned ? Shape{k, m} : Shape{m, k}, DType::f32, 1);
      const Tensor b = random_tensor(b_turned ? Shape{n, k} : Shape{k, n}, DType::f32, 2);
      Tensor c = random_tensor({m, n}, DType::f32, 3), again({m, n}, DType::f32);
      copy(again, c);
      const Doubles expected = oracle(a_turned, b_turned, m, n, k, 0.035, to_doubles(a),
                                      to_doubles(b), 1, to_doubles(c));
      gemm(ta, tb, 0.035, a, b, 1, c);
      gemm(ta, tb, 0.035, a, b, 1, again);
      expect_near(c, expected, 60 * rounding(DType::f32) * std::sqrt(k), "two threads");
      EXPECT_TRUE(same_bits(c, again));
    }
  }
  set_compute_threads(1);
}

TEST_P(GemmTest, EmptyProducts) {
  for (const DType c_type : result_types()) {
    for (const auto& [m, n, k] :
         {std::tuple<int64_t, int64_t, int64_t>{0, 3, 4}, {3, 0, 4}, {3, 4, 0}, {0, 0, 0}}) {
      const Tensor a = empty({m, k}, dtype()), b = empty({k, n}, dtype());
      Tensor c = filled({m, n}, c_type, 2);
      gemm(Transpose::no, Transpose::no, 1, a, b, 0.5, c);
      for (double v : to_doubles(c)) EXPECT_EQ(v, 1);
      c = filled({m, n}, c_type, std::nan(""));
      gemm(Transpose::no, Transpose::no, 1, a, b, 0, c);
      for (double v : to_doubles(c)) EXPECT_EQ(v, 0);
    }
  }
}

TEST_P(GemmTest, HigherDimensionsAreSeenAsMatrices) {
  const Tensor x = random_tensor({6, 2, 4}, dtype(), 1), w = random_tensor({3, 2, 4}, dtype(), 2);
  Tensor y = empty({6, 3, 1}, dtype()), flat = empty({6, 3}, dtype());
  gemm(Transpose::no, Transpose::yes, 1, x, w, 0, y);
  gemm(Transpose::no, Transpose::yes, 1, x.view().reshape({6, 8}), w.view().reshape({3, 8}), 0,
       flat);
  EXPECT_TRUE(same_bits(y, flat));
}

TEST_P(GemmTest, EqualShapesGiveEqualBits) {
  for (const DType c_type : result_types()) {
    const Tensor a = random_tensor({300, 96}, dtype(), 1),
                 b = random_tensor({300, 200}, dtype(), 2);
    Tensor first = zeros({96, 200}, c_type);
    gemm(Transpose::yes, Transpose::no, 0.1, a, b, 1, first);
    for (int i = 0; i < 5; ++i) {
      // From other addresses, and after other products have used the caches.
      const Tensor a_again = random_tensor({300, 96}, dtype(), 1);
      Tensor c = zeros({96, 200}, c_type), other = empty({96, 200}, c_type);
      gemm(Transpose::yes, Transpose::no, 0.2, a, b, 0, other);
      gemm(Transpose::yes, Transpose::no, 0.1, a_again, b, 1, c);
      EXPECT_TRUE(same_bits(c, first));
    }
  }
}

// Rows from anywhere in a tensor on: their alignment is that of an element.
TEST_P(GemmTest, PartsOfTensors) {
  const Tensor a = random_tensor({40, 7}, dtype(), 1), b = random_tensor({9, 7}, dtype(), 2);
  Tensor whole = empty({40, 9}, dtype()), c = empty({40, 9}, dtype());
  gemm(Transpose::no, Transpose::yes, 1, a, b, 0, whole);
  for (int64_t first = 0; first < 40; first += 3) {
    const int64_t count = std::min<int64_t>(3, 40 - first);
    gemm(Transpose::no, Transpose::yes, 1, ConstTensorView(a).slice(first, count), b, 0,
         c.view().slice(first, count));
  }
  expect_near(c, to_doubles(whole), 60 * rounding(dtype()), "slices");
}

AMUR_KERNEL_CASES(GemmTest, widest_targets(), DType::f32, DType::bf16, DType::f64);

TEST(Gemm, ThreadsAndConcurrentCallers) {
  set_compute_threads(2);
  EXPECT_EQ(compute_threads(), 2);
  set_compute_threads(1);
  EXPECT_EQ(compute_threads(), 1);
  EXPECT_THROW(set_compute_threads(0), InternalError);
  // More shapes than the cache of compiled products holds, from two threads.
  const Tensor a = random_tensor({700, 8}, DType::bf16, 1),
               b = random_tensor({8, 8}, DType::bf16, 2);
  const Doubles expected = oracle(false, false, 700, 8, 8, 1, to_doubles(a), to_doubles(b), 0, {});
  const auto run = [&] {
    Tensor c({700, 8}, DType::f32);
    for (int64_t rows = 1; rows <= 700; ++rows) {
      gemm(Transpose::no, Transpose::no, 1, a.view().slice(0, rows), b, 0, c.view().slice(0, rows));
      const Doubles last = to_doubles(c.view().slice(rows - 1, 1));
      for (size_t j = 0; j < 8; ++j)
        EXPECT_NEAR(last[j], expected[static_cast<size_t>(rows - 1) * 8 + j], 1e-5);
    }
  };
  std::thread other(run);
  run();
  other.join();
}

TEST(Gemm, WrongShapesAndTypesAreRefused) {
  const Tensor a({2, 3}, DType::f32), b({4, 5}, DType::f32), half({3, 5}, DType::bf16);
  Tensor c({2, 5}, DType::f32), c_half({2, 5}, DType::bf16);
  EXPECT_THROW(gemm(Transpose::no, Transpose::no, 1, a, b, 0, c), InternalError);
  EXPECT_THROW(gemm(Transpose::no, Transpose::no, 1, a, half, 0, c), InternalError);
  const Tensor fitting({3, 5}, DType::f32);
  EXPECT_THROW(gemm(Transpose::no, Transpose::no, 1, a, fitting, 0, c_half), InternalError);
}

TEST(Gemm, AProcessorThatTheLibraryDoesNotKnow) {
  using cpu::Isa;
  EXPECT_EQ(cpu::better_core("Prescott", Isa::avx512), "SkylakeX");
  EXPECT_EQ(cpu::better_core("Nehalem", Isa::avx2), "Haswell");
  EXPECT_EQ(cpu::better_core("Prescott", Isa::baseline), "");
  for (const char* known : {"Haswell", "Zen", "SkylakeX", "Cooperlake", "ARMV8"})
    EXPECT_EQ(cpu::better_core(known, Isa::avx512), "") << known;
}

TEST(Gemm, LibrariesAreNamed) {
  EXPECT_NE(gemm_library_text().find("OpenBLAS 0."), std::string::npos) << gemm_library_text();
  EXPECT_NE(gemm_library_text().find("oneDNN "), std::string::npos) << gemm_library_text();
}

}  // namespace
}  // namespace amur::test
