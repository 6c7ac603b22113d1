// Extra memory of the loss stage at large batches: linear in the batch, measured by the process as
// well as counted. Minutes long, because the work is quadratic.
#include <gtest/gtest.h>

#include "src/core/process.h"
#include "src/core/random.h"
#include "src/train/loss/contrastive_loss.h"
#include "tests/unit/loss/dp_group.h"

namespace amur {
namespace {

constexpr int64_t kWidth = 256;

struct Extra {
  double counted = 0, resident = 0;  // bytes of this rank
};

// One symmetric loss over b queries and b documents.
Extra extra_memory(int64_t b) {
  Communicator& dp = dp_group();
  const int64_t own = b / dp.size();
  Tensor queries({own, kWidth}, DType::f32), documents({own, kWidth}, DType::f32);
  Tensor dq = Tensor::zeros(queries.shape(), DType::f32);
  Tensor dk = Tensor::zeros(documents.shape(), DType::f32);
  std::vector<uint64_t> query_ids, document_ids;
  std::vector<int32_t> positive, other_first{0};
  const RandomKey key = RandomKey(1).fold(static_cast<uint64_t>(RandomPurpose::probe));
  for (int64_t i = 0; i < own; ++i) {
    const auto id = static_cast<uint64_t>(dp.rank() * own + i);
    for (int64_t d = 0; d < kWidth; ++d) {
      const auto at = static_cast<uint64_t>(d);
      queries.as<float>()[i * kWidth + d] = static_cast<float>(key.fold(id).normal(at) / 16);
      documents.as<float>()[i * kWidth + d] = static_cast<float>(key.fold(~id).normal(at) / 16);
    }
    query_ids.push_back(id);
    document_ids.push_back(~id);
    positive.push_back(static_cast<int32_t>(i));
    other_first.push_back(0);
  }
  const ContrastiveInput input{queries,  documents,   query_ids, document_ids,
                               positive, other_first, {}};
  const size_t before = resident_bytes();
  const size_t peak_before = peak_resident_bytes();
  const ContrastiveOutput out = contrastive_loss(LossConfig(), 3, 0, input, dq, dk, dp);
  EXPECT_EQ(out.queries, b);
  EXPECT_GT(out.loss, 0);
  // The peak of the process counts where this batch has raised it: batches come in rising order.
  EXPECT_GT(peak_resident_bytes(), peak_before);
  return {static_cast<double>(out.peak_bytes), static_cast<double>(peak_resident_bytes() - before)};
}

TEST(LossMemory, IsLinearInTheBatch) {
  extra_memory(1024);  // what libraries allocate once
  const int64_t batches[] = {2048, 8192, 32768};
  Extra extra[3];
  for (int k = 0; k < 3; ++k) {
    extra[k] = extra_memory(batches[k]);
    if (dp_group().rank() == 0)
      fmt::print("batch {}: {:.1f} MB counted, {:.1f} MB resident, {:.0f} bytes a sample\n",
                 batches[k], extra[k].counted * 1e-6, extra[k].resident * 1e-6,
                 extra[k].resident / static_cast<double>(batches[k]));
  }
  // A matrix of all scores would be 4.3 GB at the last and make this ratio 16. What the process takes
  // anew is less where memory of the batch before is still its own, so that 4 is only its limit.
  EXPECT_NEAR((extra[2].counted - extra[1].counted) / (extra[1].counted - extra[0].counted), 4,
              0.2);
  EXPECT_LT((extra[2].resident - extra[1].resident) / (extra[1].resident - extra[0].resident), 5);
  EXPECT_GT(extra[2].resident, extra[2].counted / 2);
}

}  // namespace
}  // namespace amur
