// Sums on the side stream, through shared memory and by messages: against closed forms, the same
// with and without overlap, and what is left of a rounded sum.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "comm/process_grid.h"
#include "comm/trace.h"
#include "src/core/random.h"
#include "tests/support/mpi_runtime.h"

namespace amur {
namespace {

// Of odd sizes, one larger than what travels at once, one empty.
const std::vector<int64_t> kSizes = {3, 700'001, 0, 1, 65'537};

double value(int rank, size_t tensor, int64_t i) {
  return RandomKey(5)
      .fold(static_cast<uint64_t>(rank))
      .fold(tensor)
      .normal(static_cast<uint64_t>(i));
}

template <class T>
std::vector<Tensor> tensors_of(int rank) {
  std::vector<Tensor> tensors;
  for (size_t k = 0; k < kSizes.size(); ++k) {
    tensors.emplace_back(Shape{kSizes[k]}, dtype_of<T>);
    for (int64_t i = 0; i < kSizes[k]; ++i)
      tensors[k].as<T>()[i] = static_cast<T>(value(rank, k, i));
  }
  return tensors;
}

std::vector<TensorView> views(std::vector<Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

bool equal_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t k = 0; k < a.size(); ++k)
    if (std::memcmp(a[k].view().raw(), b[k].view().raw(), a[k].bytes()) != 0) return false;
  return true;
}

class SideStream : public ::testing::TestWithParam<bool> {
 protected:
  SideStream() : grid(open()), dp(grid->dp()) {}
  static std::unique_ptr<ProcessGrid> open() {
    return std::make_unique<ProcessGrid>(test_runtime(), GridShape{test_runtime().size(), 1});
  }
  bool through_nodes() const { return GetParam(); }
  // Those that exchange with each other.
  int machines() const { return through_nodes() ? test_runtime().nodes() : dp.size(); }
  std::unique_ptr<ProcessGrid> grid;
  Communicator& dp;
};

template <class T>
void check_sums(Communicator& dp, const std::vector<Tensor>& sums, double bound) {
  for (size_t k = 0; k < sums.size(); ++k)
    for (int64_t i = 0; i < sums[k].elements(); i += 97) {
      double wanted = 0;
      for (int r = 0; r < dp.size(); ++r)
        wanted += static_cast<double>(static_cast<T>(value(r, k, i)));
      ASSERT_NEAR(static_cast<double>(sums[k].as<T>()[i]), wanted, bound) << k << ", " << i;
    }
}

TEST_P(SideStream, AddsListsOfAnySize) {
  const Stream side = dp.side_stream({.through_nodes = through_nodes()});
  auto floats = tensors_of<float>(dp.rank());
  auto doubles = tensors_of<double>(dp.rank());
  // Two operations under way, and one of the control plane beside them.
  dp.all_reduce(views(floats), ReduceOp::sum, side);
  dp.all_reduce(views(doubles), ReduceOp::sum, side);
  EXPECT_EQ(dp.sum(int64_t{1}), dp.size());
  dp.synchronize(side);
  check_sums<float>(dp, floats, 1e-5);
  check_sums<double>(dp, doubles, 1e-13);
}

TEST_P(SideStream, TheSameWithoutOverlapAndOnEveryRank) {
  const auto run = [&](bool overlap) {
    const auto own = open();
    Communicator& group = own->dp();
    const Stream side = group.side_stream({.overlap = overlap, .through_nodes = through_nodes()});
    auto tensors = tensors_of<float>(group.rank());
    for (int repeat = 0; repeat < 3; ++repeat) {
      // The ranks come at different times.
      std::this_thread::sleep_for(std::chrono::milliseconds(group.rank() * repeat));
      group.all_reduce(views(tensors), ReduceOp::sum, side);
    }
    group.synchronize(side);
    for (const Tensor& t : tensors) {
      std::vector<std::byte> first(t.bytes());
      if (first.empty()) continue;
      std::memcpy(first.data(), t.view().raw(), t.bytes());
      group.broadcast(first, 0);
      EXPECT_EQ(std::memcmp(first.data(), t.view().raw(), t.bytes()), 0);
    }
    return tensors;
  };
  EXPECT_TRUE(equal_bits(run(true), run(false)));
}

TEST_P(SideStream, RoundedSumAndResidualsAreTheSum) {
  const Stream side = dp.side_stream({.through_nodes = through_nodes()});
  auto tensors = tensors_of<float>(dp.rank());
  auto residuals = tensors_of<float>(0);  // to be overwritten
  dp.all_reduce_rounded(views(tensors), views(residuals), side);
  dp.synchronize(side);
  double rounded_away = 0;
  for (const Tensor& r : residuals)
    for (int64_t i = 0; i < r.elements(); ++i)
      rounded_away += std::abs(static_cast<double>(r.as<float>()[i]));
  // Nothing travels inside a machine; elsewhere bf16 cannot hold these values.
  EXPECT_EQ(dp.max(rounded_away) > 0, machines() > 1);
  dp.all_reduce(views(residuals), ReduceOp::sum, side);
  dp.synchronize(side);
  for (size_t k = 0; k < tensors.size(); ++k)
    for (int64_t i = 0; i < tensors[k].elements(); ++i)
      tensors[k].as<float>()[i] += residuals[k].as<float>()[i];
  check_sums<float>(dp, tensors, 2e-5);
}

TEST_P(SideStream, CountsWhatItSends) {
  const Stream side = dp.side_stream({.through_nodes = through_nodes()});
  auto tensors = tensors_of<float>(dp.rank());
  int64_t elements = 0;
  for (int64_t n : kSizes) elements += n;
  dp.all_reduce(views(tensors), ReduceOp::sum, side);
  dp.synchronize(side);
  EXPECT_EQ(dp.sum(dp.side_traffic().bytes_sent), 2 * (machines() - 1) * elements * 4);
  EXPECT_EQ(dp.side_traffic().seconds > 0, dp.size() > 1);
}

TEST_P(SideStream, TheTraceNamesWhatIsUnderWay) {
  if (dp.size() == 1) return;
  const Stream side = dp.side_stream({.through_nodes = through_nodes()});
  Trace& trace = test_runtime().trace();
  auto tensors = tensors_of<float>(dp.rank());
  dp.barrier();
  if (dp.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  // Check mode compares the calls here, so this returns once all are there.
  dp.all_reduce(views(tensors), ReduceOp::sum, side);
  EXPECT_FALSE(trace.position().in_collective);
  EXPECT_NE(trace.position().last.text().find("dp.all_reduce sum"), std::string::npos);
  dp.synchronize(side);
  EXPECT_TRUE(trace.last(1)[0].done);
}

INSTANTIATE_TEST_SUITE_P(Ways, SideStream, ::testing::Bool(),
                         [](const auto& way) { return way.param ? "nodes" : "messages"; });

}  // namespace
}  // namespace amur
