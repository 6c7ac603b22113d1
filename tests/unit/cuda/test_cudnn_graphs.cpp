// What the graphs that we give to cuDNN mean: computed by tests/support/cudnn_stand_in.cpp and held
// against our own attention. That cuDNN takes them is test_cudnn_plans.cpp's.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "tests/unit/kernels/kernel_test.h"

namespace amur::cuda {
namespace {

using test::Doubles;

constexpr DType kType = DType::bf16;
constexpr float kUntouched = 77;

// The tensors of a call for these texts, with one row behind the last token.
struct Call {
  test::Sequences sequences;
  AttentionShape shape;
  int64_t tokens;
  double scale;
  Tensor qkv, d_output, output, lse, dqkv, row_sums;
  std::vector<int64_t> qkv_offsets, output_offsets, lse_offsets;
  std::vector<int32_t> lengths;
  AttentionTensors tensors;

  Call(const std::vector<int32_t>& texts, int64_t heads, int64_t size)
      : sequences(texts),
        shape{std::ssize(texts) + 3, sequences.packed.longest + 5, heads, size},
        tokens(sequences.tokens()),
        scale(1 / std::sqrt(static_cast<double>(size))),
        qkv(test::random_tensor({tokens, 3, heads, size}, kType, 1)),
        d_output(test::random_tensor({tokens, heads, size}, kType, 2)),
        output(test::filled({tokens + 1, heads, size}, kType, kUntouched)),
        lse(test::filled({tokens + 1, heads}, DType::f32, kUntouched)),
        dqkv(test::filled({tokens + 1, 3, heads, size}, kType, kUntouched)),
        row_sums(test::filled({tokens + 1, heads}, DType::f32, kUntouched)),
        qkv_offsets(static_cast<size_t>(shape.sequences) + 1),
        output_offsets(qkv_offsets.size()),
        lse_offsets(qkv_offsets.size()),
        lengths(qkv_offsets.size() - 1) {
    const AttentionPlaces places{std::ssize(texts),
                                 shape.sequences,
                                 heads,
                                 size,
                                 sequences.starts.data(),
                                 qkv_offsets.data(),
                                 output_offsets.data(),
                                 lse_offsets.data(),
                                 lengths.data()};
    for (int64_t s = 0; s <= shape.sequences; ++s) places.set(s);
    tensors = {qkv.view().raw(),      output.view().raw(),      lse.as<float>(),
               d_output.view().raw(), dqkv.view().raw(),        row_sums.as<float>(),
               qkv_offsets.data(),    output_offsets.data(),    lse_offsets.data(),
               lengths.data(),        static_cast<float>(scale)};
  }

  void run(const CudnnDevice& device, AttentionDirection direction) const {
    AttentionPlan(device, direction, shape).run(tensors, nullptr, nullptr);
  }
  // Of a result without the row behind it, which must be as it was.
  ConstTensorView checked(const Tensor& result) const {
    for (const double v : test::to_doubles(result.view().slice(tokens, 1)))
      EXPECT_EQ(v, kUntouched);
    return result.view().slice(0, tokens);
  }
};

TEST(CudnnGraphs, AreAttention) {
  ASSERT_TRUE(find_cudnn().usable()) << find_cudnn().problem;
  const CudnnDevice device;
  for (const auto& [heads, size] : {std::pair<int64_t, int64_t>{1, 16}, {3, 16}, {2, 32}}) {
    const Call call({5, 1, 17, 9, 2}, heads, size);
    call.run(device, AttentionDirection::forward);
    Tensor output({call.tokens, heads, size}, kType), lse({call.tokens, heads}, DType::f32);
    attention_forward(call.sequences.packed, call.qkv, call.scale, {}, output, lse);
    const double rounding = test::rounding(kType);
    test::expect_near(call.checked(call.output), test::to_doubles(output), 3 * rounding, "output");
    test::expect_near(call.checked(call.lse), test::to_doubles(lse), 1e-5, "lse");

    call.run(device, AttentionDirection::backward);
    Tensor dqkv({call.tokens, 3, heads, size}, kType);
    attention_backward(call.sequences.packed, call.d_output, call.qkv, output, lse, call.scale, {},
                       dqkv);
    test::expect_near(call.checked(call.dqkv), test::to_doubles(dqkv), 6 * rounding, "gradient");
    call.checked(call.row_sums);

    // A part that is taken for another shows.
    Call wrong({5, 1, 17, 9, 2}, heads, size);
    wrong.tensors.scale *= 1.2f;
    wrong.run(device, AttentionDirection::forward);
    double apart = 0;
    const Doubles right = test::to_doubles(lse), other = test::to_doubles(wrong.checked(wrong.lse));
    for (size_t i = 0; i < right.size(); ++i)
      apart = std::max(apart, std::abs(right[i] - other[i]));
    EXPECT_GT(apart, 1e-2);
  }
}

TEST(CudnnGraphs, AnEngineThatIsNotDeterministicIsLeftAlone) {
  const CudnnDevice device;
  const AttentionShape shape{8, 64, 2, 32};
  EXPECT_NO_THROW(AttentionPlan(device, AttentionDirection::backward, shape));
  setenv("AMUR_STAND_IN_NOTES", "1", 1);
  EXPECT_THROW(AttentionPlan(device, AttentionDirection::backward, shape), CudnnRefusal);
  unsetenv("AMUR_STAND_IN_NOTES");
}

}  // namespace
}  // namespace amur::cuda
