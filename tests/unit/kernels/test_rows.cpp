#include "kernels/rows.h"

#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class RowsTest : public KernelTest {};

TEST_P(RowsTest, GatherAndScatter) {
  const std::vector<int32_t> index = {6, 0, 3, 8, 1};
  const auto count = static_cast<int64_t>(index.size());
  for (const int64_t width : {1, 2, 5, 64, 300}) {
    const Tensor many = random_tensor({9, width}, dtype(), 1);
    const Doubles in = to_doubles(many);
    Tensor few = empty({count, width}, dtype()), back = zeros({9, width}, dtype());
    gather_rows(many, index, few);
    scatter_rows(few, index, back);
    const Doubles gathered = to_doubles(few), scattered = to_doubles(back);
    Doubles expected(in.size());
    for (size_t i = 0; i < index.size(); ++i) {
      for (size_t j = 0; j < static_cast<size_t>(width); ++j) {
        const size_t at = static_cast<size_t>(index[i]) * static_cast<size_t>(width) + j;
        EXPECT_EQ(gathered[i * static_cast<size_t>(width) + j], in[at]);
        expected[at] = in[at];
      }
    }
    EXPECT_EQ(scattered, expected);
  }
  // From an odd row on: in bf16 not at a whole word. And nothing at all.
  const Tensor many = random_tensor({9, 1}, dtype(), 1);
  Tensor few = empty({2, 1}, dtype());
  gather_rows(ConstTensorView(many).slice(3, 6), std::vector<int32_t>{5, 0}, few);
  EXPECT_EQ(to_doubles(few), (Doubles{to_doubles(many)[8], to_doubles(many)[3]}));
  // Whole packs, but not where such begin.
  const Tensor wide = random_tensor({9, 64}, dtype(), 1);
  Tensor even = empty({count, 64}, dtype());
  const OddlyPlaced odd(even);
  gather_rows(wide, index, even);
  gather_rows(OddlyPlaced(wide), index, odd);
  EXPECT_EQ(to_doubles(odd), to_doubles(even));
  gather_rows(many, {}, few.view().slice(0, 0));
  scatter_rows(few.view().slice(0, 0), {}, few);
}

TEST_P(RowsTest, RowsOfATable) {
  for (const int64_t width : {1, 5, 300, 304}) {
    Doubles v = to_doubles(random_tensor({9, width}, dtype(), 1));
    const auto at = [&](int64_t row, int64_t column) -> double& {
      return v[static_cast<size_t>(row * width + column)];
    };
    const std::vector<int64_t> rows = {7, 0, 3};
    at(8, 0) = std::nan("");  // not among them
    Tensor x = from_doubles(v, {9, width}, dtype(), device());
    double squares = 0;
    for (const int64_t r : rows)
      for (int64_t j = 0; j < width; ++j) squares += at(r, j) * at(r, j);
    EXPECT_NEAR(sum_of_squares_of_rows(x, rows), squares, 1e-12 * squares);
    EXPECT_EQ(sum_of_squares_of_rows(x, {}), 0);
    EXPECT_TRUE(all_finite_in_rows(x, rows));
    EXPECT_TRUE(all_finite_in_rows(x, {}));
    EXPECT_FALSE(all_finite_in_rows(x, std::vector<int64_t>{0, 8}));
    const OddlyPlaced odd(x);
    EXPECT_NEAR(sum_of_squares_of_rows(odd, rows), squares, 1e-12 * squares);
    EXPECT_TRUE(all_finite_in_rows(odd, rows));
    EXPECT_FALSE(all_finite_in_rows(odd, std::vector<int64_t>{8}));
    scale_rows(odd, rows, std::vector<double>{0.5, 0, -2});

    scale_rows(x, rows, std::vector<double>{0.5, 0, -2});
    EXPECT_TRUE(same_bits(x, odd));
    for (int64_t j = 0; j < width; ++j) {
      at(7, j) *= 0.5;
      at(0, j) = 0;
      at(3, j) *= -2;
      at(8, j) = j == 0 ? 0 : at(8, j);
    }
    scale_rows(x, std::vector<int64_t>{8}, std::vector<double>{1});  // as it is
    Doubles result = to_doubles(x);
    double& untouched = result[static_cast<size_t>(8 * width)];
    EXPECT_TRUE(std::isnan(untouched));
    untouched = 0;
    expect_near(result, v, rounding(dtype()), "scaled");
    scale_rows(x, std::vector<int64_t>{8}, std::vector<double>{0});
    for (int64_t j = 0; j < width; ++j)
      EXPECT_EQ(to_doubles(x)[static_cast<size_t>(8 * width + j)], 0);
  }
  Tensor x = zeros({4, 3}, dtype());
  for (const std::vector<int64_t>& bad : {std::vector<int64_t>{-1}, {4}}) {
    EXPECT_THROW(scale_rows(x, bad, std::vector<double>{1}), InternalError);
    EXPECT_THROW(sum_of_squares_of_rows(x, bad), InternalError);
    EXPECT_THROW(all_finite_in_rows(x, bad), InternalError);
  }
  EXPECT_THROW(scale_rows(x, std::vector<int64_t>{1}, {}), InternalError);
}

TEST_P(RowsTest, WrongRowsAreRefused) {
  const Tensor many = zeros({4, 3}, dtype());
  Tensor few = zeros({1, 3}, dtype());
  for (const int32_t bad : {-1, 4})
    EXPECT_THROW(gather_rows(many, std::vector<int32_t>{bad}, few), InternalError);
  EXPECT_THROW(gather_rows(many, std::vector<int32_t>{0, 1}, few), InternalError);
}

AMUR_KERNEL_CASES(RowsTest, widest_targets(), DType::f32, DType::bf16, DType::f64);

}  // namespace
}  // namespace amur::test
