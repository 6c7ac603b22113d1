#include <gtest/gtest.h>

#include <cstring>

#include "src/core/random.h"
#include "src/model/module.h"

namespace amur {
namespace {

int a, b;  // owners

TEST(SavedTensors, TakesTheNewestOfItsOwner) {
  SavedTensors stack;
  stack.push(&a, {3}, DType::f32).as<float>()[2] = 7;
  stack.push(&b, {2, 2}, DType::bf16);
  EXPECT_EQ(stack.bytes(), 128u);
  EXPECT_EQ(stack.pop(&b).shape(), Shape({2, 2}));
  EXPECT_EQ(stack.pop(&a).as<float>()[2], 7);
  EXPECT_EQ(stack.bytes(), 0u);
  EXPECT_EQ(stack.peak_bytes(), 128u);
}

TEST(SavedTensors, RefusesAnotherOrder) {
  SavedTensors stack;
  EXPECT_THROW(stack.pop(&a), InternalError);
  stack.push(&a, {1}, DType::f32);
  stack.push(&b, {1}, DType::f32);
  EXPECT_THROW(stack.pop(&a), InternalError);
  EXPECT_THROW(stack.release_blocks(), InternalError);
  EXPECT_THROW(stack.rewind(3), InternalError);
  stack.pop(&b);
  EXPECT_THROW(stack.peek(&b), InternalError);
  EXPECT_EQ(stack.peek(&a).elements(), 1);
  stack.pop(&a);
  stack.release_blocks();
}

TEST(SavedTensors, PeeksAtTheNewestOfAnOwnerBelowOthers) {
  SavedTensors stack;
  stack.push(&a, {1}, DType::f64);
  stack.push(&a, {2}, DType::f64);
  stack.push(&b, {3}, DType::f64);
  EXPECT_EQ(stack.peek(&a).elements(), 2);
  EXPECT_EQ(stack.mark(), 3u);
}

TEST(SavedTensors, KeepsEveryTensorApartInBlocksOfAnySize) {
  for (size_t block_bytes : {size_t{0}, size_t{64}, size_t{1000}, size_t{1} << 16}) {
    SavedTensors stack(Device::cpu(), block_bytes);
    struct Pushed {
      TensorView view;
      unsigned char mark;
    };
    std::vector<Pushed> pushed;
    const RandomKey key(17);
    size_t bytes = 0;
    for (uint64_t i = 0; i < 4000; ++i) {
      // Grows and shrinks in waves, so that blocks are left and entered again.
      if (!pushed.empty() && key.below(2 * i, 100) < (i / 400 % 2 == 0 ? 30u : 70u)) {
        const TensorView view = stack.pop(&a);
        ASSERT_EQ(view.raw(), pushed.back().view.raw());
        const auto* data = static_cast<const unsigned char*>(view.raw());
        for (size_t j = 0; j < view.bytes(); ++j) ASSERT_EQ(data[j], pushed.back().mark);
        bytes -= SavedTensors::rounded_bytes(view.shape(), view.dtype());
        pushed.pop_back();
      } else {
        const auto n = static_cast<int64_t>(key.below(2 * i + 1, i % 50 == 0 ? 3000 : 200));
        const TensorView view = stack.push(&a, {n}, DType::u8);
        ASSERT_EQ(reinterpret_cast<uintptr_t>(view.raw()) % 64, 0u);
        const auto mark = static_cast<unsigned char>(i % 251);
        std::memset(view.raw(), mark, view.bytes());
        bytes += SavedTensors::rounded_bytes(view.shape(), view.dtype());
        pushed.push_back({view, mark});
      }
      ASSERT_EQ(stack.bytes(), bytes);
    }
    stack.rewind(0);
    EXPECT_EQ(stack.bytes(), 0u);
  }
}

TEST(SavedTensors, ReusesItsBlocks) {
  SavedTensors stack(Device::cpu(), 4096);
  const auto round = [&] {
    for (int i = 0; i < 20; ++i) stack.push(&a, {100 * i + 1}, DType::f32);
    stack.rewind(0);
  };
  round();
  const size_t held = memory_use(Device::cpu()).now;
  round();
  EXPECT_EQ(memory_use(Device::cpu()).now, held);
  stack.release_blocks();
  EXPECT_LT(memory_use(Device::cpu()).now, held);
}

// Without it each of these would take two blocks of its own.
TEST(SavedTensors, ReservesOneBlock) {
  SavedTensors stack(Device::cpu(), 4096);
  const auto push_all = [&] {
    for (int i = 0; i < 20; ++i) stack.push(&a, {5000}, DType::u8);
  };
  const size_t before = memory_use(Device::cpu()).now,
               each = SavedTensors::rounded_bytes({5000}, DType::u8);
  push_all();
  EXPECT_GE(memory_use(Device::cpu()).now - before, 20 * 8192u);
  EXPECT_THROW(stack.reserve(1 << 20), InternalError);
  stack.rewind(0);
  stack.reserve(20 * each);
  const size_t held = memory_use(Device::cpu()).now;
  EXPECT_LT(held - before, 20 * each + 4096);
  push_all();
  EXPECT_EQ(memory_use(Device::cpu()).now, held);
  stack.rewind(0);
  stack.reserve(each);  // there is room
  EXPECT_EQ(memory_use(Device::cpu()).now, held);
}

TEST(SavedTensors, ScratchScopeGivesBackWhatItTook) {
  SavedTensors stack;
  stack.push(&a, {5}, DType::f32);
  {
    ScratchScope outer(stack);
    outer.tensor({7}, DType::f32);
    {
      ScratchScope inner(stack);
      inner.tensor({9}, DType::f32);
    }
    EXPECT_EQ(stack.mark(), 2u);
  }
  EXPECT_EQ(stack.mark(), 1u);
  EXPECT_EQ(stack.peek(&a).elements(), 5);
}

}  // namespace
}  // namespace amur
