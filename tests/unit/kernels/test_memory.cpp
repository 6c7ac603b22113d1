// Copies between host and device: of any size, and from memory that is used again at once.
#include <numeric>

#include "tests/unit/kernels/kernel_test.h"

namespace amur::test {
namespace {

class MemoryTest : public KernelTest {};

// Around the pieces in which a GPU is served, and beyond all of them together.
TEST_P(MemoryTest, CopiesOfAnySize) {
  for (const int64_t n : {int64_t{1}, int64_t{1} << 20, (int64_t{1} << 20) + 1, int64_t{9} << 20}) {
    Tensor host({n}, DType::i32), there({n}, DType::i32, device()), back({n}, DType::i32);
    int32_t* values = host.as<int32_t>();
    std::iota(values, values + n, 7);
    copy(there, host);
    std::fill_n(values, n, -1);
    copy(back, there);
    std::iota(values, values + n, 7);
    EXPECT_TRUE(same_bits(back, host)) << n;
  }
}

TEST_P(MemoryTest, ManyFromOnePlace) {
  constexpr int64_t kRows = 2500, kWidth = 4096;
  Tensor there({kRows, kWidth}, DType::i32, device()), back(there.shape(), DType::i32);
  Tensor row({1, kWidth}, DType::i32);
  for (int64_t r = 0; r < kRows; ++r) {
    std::fill_n(row.as<int32_t>(), kWidth, static_cast<int32_t>(r));
    copy(there.view().slice(r, 1), row);
  }
  copy(back, there);
  for (int64_t r = 0; r < kRows; ++r)
    for (const int64_t j : {int64_t{0}, kWidth - 1})
      ASSERT_EQ(back.as<int32_t>()[r * kWidth + j], r) << j;
}

AMUR_KERNEL_CASES(MemoryTest, widest_targets(), DType::i32);

}  // namespace
}  // namespace amur::test
