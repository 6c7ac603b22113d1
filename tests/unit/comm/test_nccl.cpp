// The NCCL back end over what passes for NCCL on a CPU: which groups get it, what it asks of NCCL,
// and how it fails. The sums themselves are those of test_collectives.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <thread>

#include "comm/nccl_group.h"
#include "comm/nccl_search.h"
#include "comm/trace.h"
#include "src/core/gpu.h"
#include "tests/support/mpi_runtime.h"
#include "tests/support/nccl_stand_in.h"
#include "tests/unit/comm/ways.h"

namespace amur {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const test::Way kStandIn{"stand_in", Device::cuda(), CommBackend::nccl, true};

NcclStandInCounts counts() {
  void* function = test::of_stand_in("nccl_stand_in_counts");
  return function ? reinterpret_cast<decltype(nccl_stand_in_counts)*>(function)()
                  : NcclStandInCounts{};
}

// Tells the stand-in something for as long as it lives.
class Told {
 public:
  explicit Told(const std::string& what) { setenv("NCCL_STAND_IN", what.c_str(), 1); }
  ~Told() { unsetenv("NCCL_STAND_IN"); }
  Told(const Told&) = delete;
  Told& operator=(const Told&) = delete;
};

template <class Failure, class F>
std::string failure_of(F&& f) {
  try {
    f();
  } catch (const Failure& e) {
    return e.what();
  }
  return "nothing was thrown";
}

int size() {
  return test_runtime().size();
}
int rank() {
  return test_runtime().rank();
}

Tensor on_gpu(float value, int64_t elements = 1000, DType dtype = DType::f32) {
  Tensor t(Shape{elements}, dtype);
  for (int64_t i = 0; i < elements; ++i)
    dtype == DType::f32 ? void(t.as<float>()[i] = value) : void(t.as<bf16>()[i] = bf16(value));
  return on_device(std::move(t), Device::cuda());
}
float first_of(const Tensor& t) {
  Tensor staging;
  const ConstTensorView host = on_host(t, staging);
  return t.dtype() == DType::f32 ? host.as<float>()[0] : static_cast<float>(host.as<bf16>()[0]);
}

TEST(NcclGrid, EveryGroupHasItsOwnAndSumsRight) {
  for (int tp = 1; tp <= size(); ++tp) {
    if (size() % tp != 0) continue;
    const int before = counts().groups, dp = size() / tp;
    const auto grid = test::open_grid(kStandIn, {dp, tp});
    // Groups of all ranks share one, groups of one have none.
    const auto split = [&](int members) { return int{members > 1 && members < size()}; };
    EXPECT_EQ(counts().groups - before, size() == 1 ? 0 : 1 + split(dp) + split(tp));
    Tensor over_dp = on_gpu(static_cast<float>(1 << rank())), over_tp = on_gpu(1);
    grid->tp().all_reduce(over_tp, ReduceOp::sum);
    grid->dp().all_reduce(over_dp, ReduceOp::sum);
    Tensor over_all = on_gpu(static_cast<float>(rank()));
    grid->world().all_reduce(over_all, ReduceOp::max);
    for (Communicator* group : {&grid->dp(), &grid->tp(), &grid->world()}) group->synchronize();
    float wanted = 0;
    for (int k = 0; k < dp; ++k) wanted += static_cast<float>(1 << (grid->tp_rank() + k * tp));
    EXPECT_EQ(first_of(over_dp), wanted);
    EXPECT_EQ(first_of(over_tp), static_cast<float>(tp));
    EXPECT_EQ(first_of(over_all), static_cast<float>(size() - 1));
  }
  EXPECT_EQ(counts().destroyed, counts().groups);
  EXPECT_EQ(counts().aborted, 0);
}

TEST(NcclGrid, WithoutNcclOnEveryRankItIsMpiOrAnError) {
  const auto open = [](CommBackend backend, const std::string& problem, Device device) {
    GpuOptions options;
    options.device = device;
    options.nccl_problem = problem;
    return std::make_unique<ProcessGrid>(test_runtime(), GridShape{size(), 1}, backend, options);
  };
  EXPECT_TRUE(find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false).usable());
  EXPECT_TRUE(find_nccl(AMUR_NCCL_STAND_IN).usable());
  const int before = counts().groups;
  const std::string lonely = rank() == size() - 1 ? "no such library" : "";
  const std::string last = fmt::format("--comm nccl: rank {}: ", size() - 1);
  EXPECT_THAT(failure_of<UsageError>([&] { open(CommBackend::nccl, lonely, Device::cuda()); }),
              AllOf(HasSubstr(last + "no such library"), HasSubstr("use --comm mpi")));
  EXPECT_THAT(failure_of<UsageError>([&] { open(CommBackend::nccl, "", Device::cpu()); }),
              HasSubstr("--comm nccl: rank 0: its tensors are on the CPU"));
  const auto works = [&](CommBackend backend, const std::string& problem) {
    const auto grid = open(backend, problem, Device::cuda());
    Tensor sum = on_gpu(1);
    grid->dp().all_reduce(sum, ReduceOp::sum);
    grid->dp().synchronize();
    EXPECT_EQ(first_of(sum), static_cast<float>(size()));
    EXPECT_FALSE(grid->dp().overlaps(Device::cuda()));
  };
  works(CommBackend::automatic, lonely);
  works(CommBackend::mpi, "");
  if (size() == 1) return;
  {
    const Told one_gpu("one-gpu");
    EXPECT_THAT(failure_of<UsageError>([&] { open(CommBackend::nccl, "", Device::cuda()); }),
                HasSubstr("ranks 0 and 1 share a GPU"));
    works(CommBackend::automatic, "");
    EXPECT_EQ(counts().groups, before);
    // As launch/gpu-check.sh does.
    setenv("NCCL_HOSTID", fmt::format("r{}", rank()).c_str(), 1);
    open(CommBackend::nccl, "", Device::cuda());
    unsetenv("NCCL_HOSTID");
  }
  EXPECT_TRUE(open(CommBackend::automatic, "", Device::cuda())->dp().overlaps(Device::cuda()));
  EXPECT_EQ(counts().groups, before + 2);
}

TEST(NcclGrid, RanksThatShareAGpu) {
  EXPECT_EQ(ranks_that_share_a_gpu({}), "");
  EXPECT_EQ(ranks_that_share_a_gpu(std::vector<std::string>{"a 1", "a 2", "b 1"}), "");
  EXPECT_EQ(ranks_that_share_a_gpu(std::vector<std::string>{"a 1", "b 1", "a 2", "b 1"}),
            "ranks 1 and 3");
}

TEST(NcclGrid, LibrariesThatAreNotItAreRefused) {
  EXPECT_THAT(find_nccl("/no/such/libamur_nccl.so").problem, HasSubstr("no NCCL back end (/no"));
  EXPECT_THAT(find_nccl(AMUR_FAKE_DRIVER).problem, HasSubstr("was built for nothing that this"));
  EXPECT_EQ(find_nccl(AMUR_NCCL_STAND_IN).libraries, "NCCL 2.28.9");
}

#ifdef AMUR_NCCL_MODULE
// The library itself, as far as it goes without a GPU.
TEST(NcclLibrary, LoadsAnywhereAndSaysWhatItLacks) {
  if (size() > 1) return;
  const NcclSearch search = find_nccl(AMUR_NCCL_MODULE);
  ASSERT_TRUE(search.usable()) << search.problem;
  EXPECT_THAT(search.libraries, HasSubstr("NCCL 2."));
  const std::vector<std::byte> id = nccl_backend().unique_id();
  EXPECT_EQ(id.size(), 128u);
  if (test::ways().size() > 2) return;  // there is a GPU
  EXPECT_THAT(failure_of<CommError>([&] { nccl_backend().gpu_identity(Device::cuda()); }),
              HasSubstr("cudaDeviceGetPCIBusId: "));
  EXPECT_THAT(failure_of<CommError>([&] { nccl_backend().join(id, 0, 1, Device::cuda()); }),
              HasSubstr("cudaSetDevice: "));
}
#endif

TEST(NcclCommunicator, AListIsOneCallAndNothingIsNone) {
  if (size() == 1) return;  // a group of one asks nothing of NCCL, as the grids above show
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  std::vector<Tensor> tensors;
  for (int i = 0; i < 5; ++i) tensors.push_back(on_gpu(1, i == 2 ? 0 : 10 + i));
  const NcclStandInCounts before = counts();
  grid->dp().all_reduce(std::vector<TensorView>(tensors.begin(), tensors.end()), ReduceOp::sum);
  EXPECT_EQ(counts().calls - before.calls, 1);
  EXPECT_EQ(counts().operations - before.operations, 4);
  grid->dp().all_reduce(tensors[2], ReduceOp::sum);
  EXPECT_EQ(counts().calls - before.calls, 1);
  // Uneven rows: all broadcasts in one call; even ones: NCCL's own operation.
  std::vector<int64_t> rows(static_cast<size_t>(size()), 3);
  const auto gather = [&](int64_t total) {
    Tensor shard = on_gpu(1, rows[static_cast<size_t>(rank())]), full = on_gpu(0, total);
    const NcclStandInCounts start = counts();
    grid->dp().all_gather(shard, full, rows);
    EXPECT_EQ(counts().calls - start.calls, 1);
    return counts().operations - start.operations;
  };
  EXPECT_EQ(gather(3 * size()), 1);
  rows[0] = 7;
  EXPECT_EQ(gather(3 * size() + 4), size());
  grid->dp().synchronize();
}

// What the widening is for, and that the stand-in would see its absence: NCCL adds bf16 in bf16.
TEST(NcclCommunicator, Bf16AsItIsWouldBeRoundedAtEveryHop) {
  if (size() < 3) return;  // with two ranks there is one hop
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  Communicator& world = grid->world();
  std::vector<std::byte> id = nccl_backend().unique_id();
  world.broadcast(id, 0);
  const auto raw = nccl_backend().join(id, rank(), size(), Device::cuda());
  const auto settle = [&] {
    while (!raw->ready()) {
    }
  };
  settle();
  Tensor narrow = on_gpu(rank() == 0 ? 256 : 1, 4, DType::bf16);
  const DeviceOperation sum{DeviceOperation::Kind::all_reduce,
                            narrow.view().raw(),
                            narrow.view().raw(),
                            4,
                            DType::bf16,
                            ReduceOp::sum,
                            0};
  raw->enqueue({&sum, 1});
  settle();
  for (const uint64_t mark = raw->mark(); !raw->passed(mark);) {
  }
  EXPECT_EQ(first_of(narrow), 256);
  // A call before the last one was taken is a mistake that the stand-in notices.
  raw->enqueue({&sum, 1});
  EXPECT_THAT(failure_of<CommError>([&] {
                raw->enqueue({&sum, 1});
              }),
              HasSubstr("while in progress"));
  world.barrier();
}

class NcclSide : public ::testing::TestWithParam<test::Way> {};

TEST_P(NcclSide, SumsGoOnBesideTheCaller) {
  const auto grid = test::open_grid(GetParam(), {size(), 1});
  Communicator& dp = grid->dp();
  if (size() == 1) {
    EXPECT_EQ(dp.side_stream({}).handle(), nullptr);
    return;
  }
  const auto tensor = [&](float value, int64_t n) {
    Tensor t(Shape{n}, DType::f32);
    for (int64_t i = 0; i < n; ++i) t.as<float>()[i] = value;
    return on_device(std::move(t), GetParam().device);
  };
  const Stream side = dp.side_stream({});
  EXPECT_TRUE(dp.overlaps(GetParam().device));
  Tensor first = tensor(1, 1000), second = tensor(2, 70'001), third = tensor(3, 10);
  const TensorView list[] = {second, third};
  dp.all_reduce(first, ReduceOp::sum, side);
  dp.all_reduce(list, ReduceOp::sum, side);
  Trace& trace = test_runtime().trace();
  EXPECT_FALSE(trace.position().in_collective);
  EXPECT_THAT(trace.position().last.text(), HasSubstr("dp.all_reduce sum #3"));
  if (GetParam().pretended) {
    EXPECT_FALSE(trace.last(1)[0].done);  // nobody has looked
  }
  EXPECT_EQ(dp.sum(int64_t{1}), size());  // the control plane goes on
  dp.synchronize(side);
  for (const CollectiveRecord& r : trace.last(3)) EXPECT_TRUE(r.done) << r.text();
  EXPECT_FALSE(trace.position().in_collective);
  EXPECT_EQ(first_of(first), static_cast<float>(size()));
  EXPECT_EQ(first_of(second), static_cast<float>(2 * size()));
  EXPECT_EQ(first_of(third), static_cast<float>(3 * size()));
}

TEST_P(NcclSide, WithoutOverlapASumIsDoneWhenTheCallReturns) {
  if (size() == 1) return;
  const auto grid = test::open_grid(GetParam(), {size(), 1});
  Communicator& dp = grid->dp();
  const Stream side = dp.side_stream({.overlap = false});
  Tensor values = on_device(Tensor::zeros({50}, DType::f32), GetParam().device);
  dp.all_reduce(values, ReduceOp::sum, side);
  EXPECT_TRUE(test_runtime().trace().last(1)[0].done);
}

// As in a training's evaluations, where calls of a group follow each other and no one waits for it.
TEST(NcclCommunicator, CallsThatNobodyWaitsForAreLetGoOf) {
  if (size() == 1) return;
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  Communicator& dp = grid->dp();
  Tensor values = on_gpu(1, 4);
  constexpr int kCalls = 400, kMost = 300;
  const int before = counts().events;
  for (int i = 0; i < kCalls; ++i) dp.all_reduce(values, ReduceOp::max);
  EXPECT_LT(counts().events - before, kMost);
  dp.synchronize();
  EXPECT_EQ(first_of(values), 1);
}

std::vector<test::Way> nccl_ways() {
  std::vector<test::Way> all = test::ways();
  std::erase_if(all, [](const test::Way& way) { return way.backend != CommBackend::nccl; });
  return all;
}
INSTANTIATE_TEST_SUITE_P(Ways, NcclSide, ::testing::ValuesIn(nccl_ways()), test::name_of_way);

// A failure names group, operation and place, aborts, and is what every later call says.
TEST(NcclFailure, AnAsynchronousErrorAbortsAndNamesTheCall) {
  if (size() == 1) return;
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  Communicator& dp = grid->dp();
  const Stream side = dp.side_stream({});
  Tensor values = on_gpu(1);
  dp.all_reduce(values, ReduceOp::sum, side);
  dp.synchronize(side);
  const int aborted = counts().aborted;
  {
    const Told fail("fail");
    EXPECT_THAT(failure_of<CommError>([&] { dp.all_reduce(values, ReduceOp::sum, side); }),
                AllOf(HasSubstr("dp.all_reduce sum at tests/unit/comm/test_nccl.cpp:"),
                      HasSubstr("NCCL: remote process exited or there was a network error: the "
                                "stand-in was told to fail")));
  }
  EXPECT_EQ(counts().aborted, aborted + 1);
  EXPECT_THAT(failure_of<CommError>([&] { dp.synchronize(side); }),
              AllOf(HasSubstr("dp.synchronize at tests/unit/comm/test_nccl.cpp:"),
                    HasSubstr("network error")));
  EXPECT_THAT(failure_of<CommError>([&] { dp.all_reduce(values, ReduceOp::sum); }),
              HasSubstr("network error"));
  EXPECT_EQ(counts().aborted, aborted + 1);
  EXPECT_EQ(dp.sum(int64_t{1}), size());  // the control plane is not NCCL's
}

// Without the check mode, which compares calls before they start, NCCL's word is all there is. The
// real one may well wait for ever here: that is the watchdog's.
TEST(NcclFailure, AMismatchedCallIsNamed) {
  if (size() == 1) return;
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  Communicator& dp = grid->dp();
  const Stream side = dp.side_stream({});
  Tensor values = on_gpu(1, rank() == 0 ? 10 : 11);
  Trace& trace = test_runtime().trace();
  trace.set_check_collectives(false);
  const std::string text = failure_of<CommError>([&] {  // whichever of the two sees it
    dp.all_reduce(values, ReduceOp::sum, side);
    dp.synchronize(side);
  });
  trace.set_check_collectives(true);
  EXPECT_THAT(text, AllOf(HasSubstr("dp.all_reduce sum"), HasSubstr("called something else"),
                          HasSubstr("at tests/unit/comm/test_nccl.cpp:")));
  grid->world().barrier();
}

TEST(NcclFailure, AGroupThatIsNeverReadyEndsAtItsLimit) {
  if (size() == 1) return;
  const Told stall("stall-init");
  const int aborted = counts().aborted;
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(failure_of<CommError>([&] {
                test::open_grid(kStandIn, {size(), 1}, 0.2);
              }),
              AllOf(HasSubstr("NCCL was not ready within 0.2 s"), HasSubstr("--comm mpi")));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_EQ(counts().aborted, aborted + 1);
}

// NCCL's thread writes the child's handle when it likes; an address sanitizer sees where it goes.
TEST(NcclFailure, ASplitThatFailsIsNamedAndWrittenToNothing) {
  if (size() == 1) return;
  const auto grid = test::open_grid(kStandIn, {size(), 1});
  GpuOptions options;
  options.device = Device::cuda();
  const auto group = NcclGroup::join(grid->world(), options, test_runtime().trace());
  const Told fail("fail-split");
  const int aborted = counts().aborted;
  EXPECT_THAT(failure_of<CommError>([&] { group->split(rank() % 2, rank()); }),
              HasSubstr("the stand-in was told to fail"));
  EXPECT_EQ(counts().aborted, aborted + 1);
}

}  // namespace
}  // namespace amur
