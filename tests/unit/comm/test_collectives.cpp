// Collectives with exactly representable sums, against plain MPI and against closed forms.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "comm/process_grid.h"
#include "comm/trace.h"
#include "src/core/gpu.h"
#include "src/core/hash.h"
#include "tests/support/mpi_runtime.h"
#include "tests/unit/comm/ways.h"

namespace amur {
namespace {

// What does not depend on where tensors are.
class Groups : public ::testing::Test {
 protected:
  Groups() : grid(test_runtime(), {test_runtime().size(), 1}), world(grid.world()) {}
  ProcessGrid grid;
  Communicator& world;
  int rank() const { return world.rank(); }
  int size() const { return world.size(); }
};

class Collectives : public ::testing::TestWithParam<test::Way> {
 protected:
  Collectives()
      : grid(test::open_grid(GetParam(), {test_runtime().size(), 1})), world(grid->world()) {}
  std::unique_ptr<ProcessGrid> grid;
  Communicator& world;
  int rank() const { return world.rank(); }
  int size() const { return world.size(); }
  Device device() const { return GetParam().device; }
  Tensor there(Tensor tensor) const { return on_device(std::move(tensor), device()); }
};

// Small integers that differ by rank and place: every sum over up to 8 ranks is exact, also in
// bf16.
int value_of(int rank, int64_t i) {
  return static_cast<int>(mix64(static_cast<uint64_t>(i * 31 + rank)) % 16);
}

template <class T>
T as_element(int value) {
  if constexpr (std::is_same_v<T, bf16>)
    return bf16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}
template <class T>
int as_int(T value) {
  if constexpr (std::is_same_v<T, bf16>)
    return static_cast<int>(static_cast<float>(value));
  else
    return static_cast<int>(value);
}

template <class T>
Tensor filled(int rank, Shape shape, int64_t first = 0, Device device = Device::cpu()) {
  Tensor t(shape, dtype_of<T>);
  for (int64_t i = 0; i < t.elements(); ++i)
    t.as<T>()[i] = as_element<T>(value_of(rank, first + i));
  return on_device(std::move(t), device);
}

// What plain MPI makes of the same values as ints.
std::vector<int> reduced_by_mpi(int rank, int64_t n, MPI_Op op, int64_t first = 0) {
  std::vector<int> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = value_of(rank, first + i);
  MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(n), MPI_INT, op, MPI_COMM_WORLD);
  return values;
}

template <class T>
void expect_equal(ConstTensorView there, const std::vector<int>& want) {
  Tensor staging;
  const ConstTensorView got = on_host(there, staging);
  ASSERT_EQ(got.elements(), static_cast<int64_t>(want.size()));
  int64_t wrong = 0;
  for (int64_t i = 0; i < got.elements(); ++i)
    if (as_int(got.as<T>()[i]) != want[static_cast<size_t>(i)] && wrong++ == 0)
      ADD_FAILURE() << name_of(dtype_of<T>) << "[" << i << "] is " << as_int(got.as<T>()[i])
                    << ", wanted " << want[static_cast<size_t>(i)];
  EXPECT_EQ(wrong, 0);
}

template <class F>
void for_each_type(F&& f) {
  f.template operator()<float>();
  f.template operator()<bf16>();
  f.template operator()<double>();
  f.template operator()<int32_t>();
  f.template operator()<int64_t>();
}

// 1.3 M elements: above 4 MiB in every type of 4 bytes or more, and not a multiple of a piece.
constexpr int64_t kLarge = 1'300'003;

TEST_P(Collectives, AllReduceOfEveryTypeAndSize) {
  for_each_type([&]<class T>() {
    for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{70'000}, kLarge}) {
      Tensor sum = there(filled<T>(rank(), {n}));
      world.all_reduce(sum, ReduceOp::sum);
      expect_equal<T>(sum, reduced_by_mpi(rank(), n, MPI_SUM));
    }
    Tensor most = there(filled<T>(rank(), {1000})), least = there(filled<T>(rank(), {1000}));
    world.all_reduce(most, ReduceOp::max);
    world.all_reduce(least, ReduceOp::min);
    expect_equal<T>(most, reduced_by_mpi(rank(), 1000, MPI_MAX));
    expect_equal<T>(least, reduced_by_mpi(rank(), 1000, MPI_MIN));
  });
  Tensor flags = there(filled<uint8_t>(rank(), {1000}));
  world.all_reduce(flags, ReduceOp::max);
  expect_equal<uint8_t>(flags, reduced_by_mpi(rank(), 1000, MPI_MAX));
  EXPECT_THROW(world.all_reduce(flags, ReduceOp::sum), InternalError);
}

TEST_P(Collectives, AllReduceOfAMixedList) {
  // Small, empty, large, bf16 and integer tensors in one call.
  std::vector<Tensor> tensors;
  tensors.push_back(there(filled<float>(rank(), {3, 5}, 0)));
  tensors.push_back(there(filled<bf16>(rank(), {kLarge}, 100)));
  tensors.push_back(there(filled<float>(rank(), {0, 4}, 0)));
  tensors.push_back(there(filled<float>(rank(), {kLarge}, 200)));
  tensors.push_back(there(filled<int64_t>(rank(), {9}, 300)));
  tensors.push_back(there(filled<bf16>(rank(), {2}, 400)));
  std::vector<TensorView> views(tensors.begin(), tensors.end());
  world.all_reduce(views, ReduceOp::sum);
  expect_equal<float>(tensors[0], reduced_by_mpi(rank(), 15, MPI_SUM, 0));
  expect_equal<bf16>(tensors[1], reduced_by_mpi(rank(), kLarge, MPI_SUM, 100));
  expect_equal<float>(tensors[3], reduced_by_mpi(rank(), kLarge, MPI_SUM, 200));
  expect_equal<int64_t>(tensors[4], reduced_by_mpi(rank(), 9, MPI_SUM, 300));
  expect_equal<bf16>(tensors[5], reduced_by_mpi(rank(), 2, MPI_SUM, 400));
  world.all_reduce(std::span<const TensorView>(), ReduceOp::sum);
}

TEST_P(Collectives, Bf16SumsAreRoundedOnce) {
  // 256 + 1 + ... + 1: in bf16 arithmetic every 1 is lost; in float the sum is 256 + (size - 1).
  Tensor t(Shape{4}, DType::bf16);
  for (int i = 0; i < 4; ++i) t.as<bf16>()[i] = bf16(rank() == 0 ? 256.0f : 1.0f);
  Tensor sum = there(std::move(t)), staging;
  world.all_reduce(sum, ReduceOp::sum);
  const bf16 want(256.0f + static_cast<float>(size() - 1));
  const ConstTensorView got = on_host(sum, staging);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.as<bf16>()[i].bits, want.bits);
}

// Uneven shards with empty ones: rank r has (r * 5 + shift) % 7 rows.
std::vector<int64_t> uneven(int size, int shift) {
  std::vector<int64_t> counts;
  for (int r = 0; r < size; ++r) counts.push_back((r * 5 + shift) % 7);
  return counts;
}

template <class T>
void gather_and_check(Communicator& world, Device device, const std::vector<int64_t>& counts,
                      int64_t columns) {
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const auto me = static_cast<size_t>(world.rank());
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + world.rank(), int64_t{0});
  std::vector<int> want;
  for (int r = 0; r < world.size(); ++r)
    for (int64_t i = 0; i < counts[static_cast<size_t>(r)] * columns; ++i)
      want.push_back(value_of(r, i));
  Tensor shard = filled<T>(world.rank(), {counts[me], columns}, 0, device);
  Tensor full = Tensor::zeros({total, columns}, dtype_of<T>, device);
  world.all_gather(shard, full, counts);
  expect_equal<T>(full, want);
  // From its own slot.
  fill_zero(full.view());
  copy(full.view().slice(first, counts[me]), shard);
  world.all_gather(full.view().slice(first, counts[me]), full, counts);
  expect_equal<T>(full, want);
}

template <class T>
void scatter_and_check(Communicator& world, Device device, const std::vector<int64_t>& counts,
                       int64_t columns) {
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const auto me = static_cast<size_t>(world.rank());
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + world.rank(), int64_t{0});
  const auto all = reduced_by_mpi(world.rank(), total * columns, MPI_SUM);
  const std::vector<int> want(all.begin() + first * columns,
                              all.begin() + (first + counts[me]) * columns);
  Tensor full = filled<T>(world.rank(), {total, columns}, 0, device);
  Tensor shard(Shape{counts[me], columns}, dtype_of<T>, device);
  world.reduce_scatter(full, shard, counts);
  expect_equal<T>(shard, want);
  full = filled<T>(world.rank(), {total, columns}, 0, device);
  world.reduce_scatter(full, full.view().slice(first, counts[me]), counts);
  expect_equal<T>(full.view().slice(first, counts[me]), want);
}

TEST_P(Collectives, UnevenGatherAndScatter) {
  for (int shift = 0; shift < 3; ++shift) {
    const auto counts = uneven(size(), shift);
    for_each_type([&]<class T>() {
      gather_and_check<T>(world, device(), counts, 3);
      scatter_and_check<T>(world, device(), counts, 3);
    });
    gather_and_check<uint8_t>(world, device(), counts, 5);
  }
  // Several pieces: 8 MB in all, most of it on one rank.
  std::vector<int64_t> counts(static_cast<size_t>(size()), 11);
  counts.back() = 10'007;
  gather_and_check<float>(world, device(), counts, 200);
  scatter_and_check<float>(world, device(), counts, 200);
  scatter_and_check<bf16>(world, device(), counts, 200);
  // Nothing at all.
  const std::vector<int64_t> none(static_cast<size_t>(size()), 0);
  gather_and_check<float>(world, device(), none, 4);
  scatter_and_check<float>(world, device(), none, 4);
}

TEST_P(Collectives, SumsHaveTheSameBitsEveryTime) {
  auto fractions = [&](int64_t n) {
    Tensor t(Shape{n}, DType::f32);
    for (int64_t i = 0; i < n; ++i)
      t.as<float>()[i] = 1.0f / static_cast<float>(1 + value_of(rank(), i) * (rank() + 3) + i % 97);
    return there(std::move(t));
  };
  const int64_t rows = kLarge / size();
  const std::vector<int64_t> counts(static_cast<size_t>(size()), rows);
  // The sum and the part of this rank, in host memory.
  const auto sums = [&] {
    Tensor sum = fractions(kLarge), full = fractions(rows * size()),
           part(Shape{rows}, DType::f32, device());
    world.all_reduce(sum, ReduceOp::sum);
    world.reduce_scatter(full, part, counts);
    return std::pair(on_device(std::move(sum), Device::cpu()),
                     on_device(std::move(part), Device::cpu()));
  };
  const auto [sum, part] = sums();
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto [again, part_again] = sums();
    EXPECT_EQ(std::memcmp(again.view().raw(), sum.view().raw(), sum.bytes()), 0);
    EXPECT_EQ(std::memcmp(part_again.view().raw(), part.view().raw(), part.bytes()), 0);
  }
  // And the same bits on every rank.
  const uint64_t hash = fnv1a({static_cast<const char*>(sum.view().raw()), sum.bytes()});
  for (int64_t other : world.gather(static_cast<int64_t>(hash)))
    EXPECT_EQ(static_cast<uint64_t>(other), hash);
}

TEST_P(Collectives, BroadcastFromEveryRoot) {
  for (int root = 0; root < size(); ++root) {
    std::vector<Tensor> tensors;
    tensors.push_back(there(filled<float>(rank(), {kLarge})));
    tensors.push_back(there(filled<bf16>(rank(), {0})));
    tensors.push_back(there(filled<uint8_t>(rank(), {3})));
    std::vector<TensorView> views(tensors.begin(), tensors.end());
    world.broadcast(views, root);
    std::vector<int> want;
    for (int64_t i = 0; i < kLarge; ++i) want.push_back(value_of(root, i));
    expect_equal<float>(tensors[0], want);
    want.resize(3);
    expect_equal<uint8_t>(tensors[2], want);
    std::string text = rank() == root ? "from " + std::to_string(root) : std::string(rank(), 'x');
    world.broadcast(text, root);
    EXPECT_EQ(text, "from " + std::to_string(root));
    std::vector<std::byte> nothing(rank() == root ? 0 : 5);
    world.broadcast(nothing, root);
    EXPECT_TRUE(nothing.empty());
  }
}

// On a GPU that pretends: its memory is out of reach but for copies.
TEST_F(Groups, TensorsOnAGpuGiveTheBitsOfTheCpu) {
  ASSERT_TRUE(find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false).usable());
  const auto there = [](const Tensor& here) {
    Tensor t(here.shape(), here.dtype(), Device::cuda());
    copy(t, here);
    return t;
  };
  const auto expect_same = [](const Tensor& gpu, const Tensor& cpu) {
    Tensor staging;
    const ConstTensorView back = on_host(gpu, staging);
    EXPECT_EQ(std::memcmp(back.raw(), cpu.view().raw(), cpu.bytes()), 0);
  };
  std::vector<int64_t> counts(static_cast<size_t>(size()), 2);
  counts.back() = 5;
  const int64_t rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t mine = counts[static_cast<size_t>(rank())];
  for_each_type([&]<class T>() {
    for (const int64_t n : {int64_t{7}, kLarge}) {
      Tensor here = filled<T>(rank(), {n}), gpu = there(here);
      world.all_reduce(here, ReduceOp::sum);
      world.all_reduce(gpu, ReduceOp::sum);
      expect_same(gpu, here);
      Tensor sent = filled<T>(rank(), {n}), gpu_sent = there(sent);
      for (const TensorView view : {sent.view(), gpu_sent.view()})
        world.broadcast({&view, 1}, size() - 1);
      expect_same(gpu_sent, sent);
    }
    Tensor shard = filled<T>(rank(), {mine, 3}), full(Shape{rows, 3}, dtype_of<T>);
    Tensor gpu_shard = there(shard), gpu_full = there(full);
    world.all_gather(shard, full, counts);
    world.all_gather(gpu_shard, gpu_full, counts);
    expect_same(gpu_full, full);
    world.reduce_scatter(full, shard, counts);
    world.reduce_scatter(gpu_full, gpu_shard, counts);
    expect_same(gpu_shard, shard);
  });
  world.synchronize();
}

TEST_F(Groups, ControlPlane) {
  world.barrier();
  EXPECT_TRUE(world.all_agree(true));
  for (int bad = 0; bad < size(); ++bad) EXPECT_FALSE(world.all_agree(rank() != bad));
  EXPECT_EQ(world.sum(int64_t{rank()} + 1), int64_t{size()} * (size() + 1) / 2);
  EXPECT_EQ(world.sum(0.5 * rank()), 0.25 * size() * (size() - 1));
  EXPECT_EQ(world.max(int64_t{rank()}), size() - 1);
  EXPECT_EQ(world.max(-1.0 * rank()), 0.0);
  EXPECT_EQ(world.min(int64_t{rank()} - 3), -3);
  const auto values = world.gather(int64_t{rank()} * 10);
  const auto texts = world.gather(std::string(static_cast<size_t>(rank()), 'a'));
  ASSERT_EQ(values.size(), static_cast<size_t>(size()));
  ASSERT_EQ(texts.size(), static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    EXPECT_EQ(values[static_cast<size_t>(r)], r * 10);
    EXPECT_EQ(texts[static_cast<size_t>(r)], std::string(static_cast<size_t>(r), 'a'));
  }
  world.synchronize();
}

TEST_F(Groups, AFailureAnywhereIsThrownEverywhere) {
  agree_or_throw<IoError>(world, "");
  for (int bad = 0; bad < size(); ++bad) {
    const std::string mine = rank() >= bad ? "disk full on " + std::to_string(rank()) : "";
    try {
      agree_or_throw<IoError>(world, mine);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const IoError& e) {
      EXPECT_EQ(std::string(e.what()), "disk full on " + std::to_string(bad));
    }
  }
}

TEST_F(Groups, WrongArgumentsAreNamed) {
  Tensor full(Shape{4, 2}, DType::f32), shard(Shape{4, 2}, DType::f64);
  std::vector<int64_t> counts(static_cast<size_t>(size()), 0);
  counts[0] = 4;
  EXPECT_THROW(world.all_gather(full, full, {}), InternalError);
  EXPECT_THROW(world.all_gather(shard, full, counts), InternalError);
  EXPECT_THROW(world.broadcast(std::span<const TensorView>(), size()), InternalError);
  counts[0] = 3;
  EXPECT_THROW(world.reduce_scatter(full, full, counts), InternalError);
}

TEST_P(Collectives, CheckModeNamesWhoCalledWhat) {
  if (size() == 1) {
    // A group of one has no one to disagree with; the call is still recorded.
    world.barrier();
    EXPECT_EQ(test_runtime().trace().position().last.op, std::string("barrier"));
    return;
  }
  const int odd = size() - 1;
  std::string message;
  try {
    if (rank() == odd) {
      world.barrier();
    } else {
      world.sum(int64_t{1});
    }
  } catch (const CommError& e) {
    message = e.what();
  }
  EXPECT_NE(message.find("different collectives"), std::string::npos) << message;
  EXPECT_NE(message.find("rank " + std::to_string(odd) + "/"), std::string::npos) << message;
  EXPECT_NE(message.find("world.barrier #"), std::string::npos) << message;
  EXPECT_NE(message.find("world.sum #"), std::string::npos) << message;
  EXPECT_NE(message.find("tests/unit/comm/test_collectives.cpp:"), std::string::npos) << message;
  // Counts that differ are found too, before they do harm.
  Tensor t = Tensor::zeros({rank() == odd ? 5 : 6}, DType::f32, device());
  EXPECT_THROW(world.all_reduce(t, ReduceOp::sum), CommError);
  // One rank has the tensor elsewhere.
  if (device() != Device::cpu()) {
    Tensor alike = Tensor::zeros({4}, DType::f32, rank() == odd ? Device::cpu() : device());
    EXPECT_THROW(world.all_reduce(alike, ReduceOp::sum), CommError);
  }
  world.barrier();
}

TEST_F(Groups, GridGroupsMatchThePureFunctions) {
  for (int tp = 1; tp <= size(); ++tp) {
    if (size() % tp != 0) {
      EXPECT_THROW(ProcessGrid(test_runtime(), {size(), tp}), UsageError);
      continue;
    }
    const GridShape shape{size() / tp, tp};
    ProcessGrid split(test_runtime(), shape);
    EXPECT_EQ(split.dp_rank() * tp + split.tp_rank(), rank());
    const auto members = [&](Communicator& group) {
      std::vector<int> ranks;
      for (int64_t r : group.gather(int64_t{rank()})) ranks.push_back(static_cast<int>(r));
      return ranks;
    };
    EXPECT_EQ(members(split.dp()), dp_groups(shape)[static_cast<size_t>(split.tp_rank())]);
    EXPECT_EQ(members(split.tp()), tp_groups(shape)[static_cast<size_t>(split.dp_rank())]);
    EXPECT_EQ(split.node().size(), test_runtime().node_size());
    EXPECT_EQ(split.world().size(), size());
    int communicator_size = 0;
    MPI_Comm_size(*static_cast<const MPI_Comm*>(split.dp().mpi_handle()), &communicator_size);
    EXPECT_EQ(communicator_size, shape.dp);
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, Collectives, ::testing::ValuesIn(test::ways()), test::name_of_way);

}  // namespace
}  // namespace amur
