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
  gather_rows(many, {}, few.view().slice(0, 0));
  scatter_rows(few.view().slice(0, 0), {}, few);
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
