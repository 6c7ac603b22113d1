// Checkpoints at every grid of the ranks at hand: what is loaded is what was saved, and every
// mistake is one IoError on all ranks.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "kernels/elementwise.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

using test::SmallModel;

std::vector<GridShape> grids() {
  std::vector<GridShape> shapes;
  const int size = test::runtime().size();
  for (int tp = 1; tp <= size; ++tp)
    if (size % tp == 0) shapes.push_back({size / tp, tp});
  return shapes;
}

std::string text_of(GridShape shape) {
  return fmt::format("dp {} x tp {}", shape.dp, shape.tp);
}

std::vector<size_t> differing_bytes(const std::string& path_a, const std::string& path_b) {
  const std::vector<char> a = test::bytes_of_file(path_a), b = test::bytes_of_file(path_b);
  if (a.size() != b.size() || a.empty()) return {std::min(a.size(), b.size())};
  std::vector<size_t> where;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) where.push_back(i);
  return where;
}

TEST(Checkpoint, RoundTripBetweenAllGridsOfTheseRanks) {
  for (const GridShape from : grids()) {
    for (const int compression : {0, 4}) {
      ProcessGrid grid(test::runtime(), from);
      const test::ScratchFolder folder(&grid.world());
      SmallModel saved(grid);
      CheckpointInfo info = test::example_info();
      Checkpoint::save(folder.file("a.h5"), info, saved.parameters, saved.slots(), compression,
                       grid);
      for (const GridShape to : grids()) {
        SCOPED_TRACE(text_of(from) + " to " + text_of(to));
        ProcessGrid other(test::runtime(), to);
        const SmallModel expected(other);
        SmallModel loaded(other, 99);
        ASSERT_NE(loaded.bits(), expected.bits());
        Checkpoint::load(folder.file("a.h5"), loaded.parameters, loaded.slots(), other);
        EXPECT_EQ(loaded.bits(), expected.bits());
        const CheckpointInfo read = Checkpoint::read_info(folder.file("a.h5"), &other);
        test::expect_equal(read, info);
        EXPECT_EQ(read.dp, from.dp);
        EXPECT_EQ(read.tp, from.tp);
        EXPECT_EQ(read.world_size, test::runtime().size());
      }
      EXPECT_FALSE(std::filesystem::exists(folder.file("a.h5.tmp")));
    }
  }
}

TEST(Checkpoint, FilesOfAllGridsDifferInTheGridOnly) {
  std::vector<std::pair<std::string, AttributeValue>> first;
  std::vector<char> first_bytes;
  for (const GridShape shape : grids()) {
    ProcessGrid grid(test::runtime(), shape);
    const test::ScratchFolder folder(&grid.world());
    SmallModel model(grid);
    Checkpoint::save(folder.file("a.h5"), test::example_info(), model.parameters, model.slots(), 0,
                     grid);
    Checkpoint::save(folder.file("b.h5"), test::example_info(), model.parameters, model.slots(), 0,
                     grid);
    EXPECT_EQ(differing_bytes(folder.file("a.h5"), folder.file("b.h5")), std::vector<size_t>());
    std::vector<std::pair<std::string, AttributeValue>> sums;
    const Hdf5File file(folder.file("a.h5"), Hdf5File::Mode::read);
    for (const char* group : {"/model", "/optimizer/tiger/momentum", "/optimizer/tiger/last_step"})
      for (const std::string& name : file.children(group)) {
        const std::string path = std::string(group) + "/" + name;
        sums.emplace_back(path, file.attribute(path, "checksum"));
      }
    ASSERT_EQ(sums.size(), 14u);
    if (first.empty()) first = sums;
    EXPECT_EQ(sums, first) << text_of(shape);
  }
}

// The formula of the documentation, on the values of a tensor that this rank generates whole.
TEST(Checkpoint, ChecksumIsTheDocumentedSum) {
  const std::vector<float> values = {1.0f, -2.5f, 0.0f, 3.0f, 1e-20f, 7.0f};
  const auto expected = [&](int64_t from, int64_t to) {
    uint64_t sum = 0;
    for (int64_t i = from; i < to; ++i) {
      uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u +
                   std::bit_cast<uint32_t>(values[static_cast<size_t>(i)]);
      x ^= x >> 30;
      x *= 0xbf58476d1ce4e5b9u;
      x ^= x >> 27;
      x *= 0x94d049bb133111ebu;
      sum += x ^ (x >> 31);
    }
    return sum;
  };
  EXPECT_EQ(checksum_of(ConstTensorView(values.data(), Shape{2, 3}, DType::f32), Shape{0, 0},
                        Shape{2, 3}),
            expected(0, 6));
  EXPECT_EQ(checksum_of(ConstTensorView(values.data() + 3, Shape{1, 3}, DType::f32), Shape{1, 0},
                        Shape{2, 3}),
            expected(3, 6));
  // Columns 1..2 of both rows, as a tp shard holds them.
  const std::vector<float> columns = {-2.5f, 0.0f, 1e-20f, 7.0f};
  EXPECT_EQ(checksum_of(ConstTensorView(columns.data(), Shape{2, 2}, DType::f32), Shape{0, 1},
                        Shape{2, 3}),
            expected(1, 3) + expected(4, 6));
  // Two elements that change places change it.
  std::vector<float> swapped = values;
  std::swap(swapped[0], swapped[1]);
  EXPECT_NE(checksum_of(ConstTensorView(swapped.data(), Shape{2, 3}, DType::f32), Shape{0, 0},
                        Shape{2, 3}),
            expected(0, 6));
}

TEST(Checkpoint, LoadsWithoutOptimizerAndInAnotherPrecision) {
  ProcessGrid grid(test::runtime(), grids().back());
  const test::ScratchFolder folder(&grid.world());
  SmallModel saved(grid);
  Checkpoint::save(folder.file("a.h5"), test::example_info(), saved.parameters, saved.slots(), 0,
                   grid);
  SmallModel in_double(grid, 5, DType::f64);
  Checkpoint::load(folder.file("a.h5"), in_double.parameters, {}, grid);
  for (size_t i = 0; i < saved.parameters.size(); ++i)
    for (int64_t k = 0; k < saved.parameters[i].value.elements(); ++k)
      ASSERT_EQ(in_double.parameters[i].value.as<double>()[k],
                double{saved.parameters[i].value.as<float>()[k]});
  SmallModel back(grid, 6);
  Checkpoint::save(folder.file("b.h5"), test::example_info(), in_double.parameters, {}, 0, grid);
  Checkpoint::load(folder.file("b.h5"), back.parameters, {}, grid);
  for (size_t i = 0; i < saved.parameters.size(); ++i)
    for (int64_t k = 0; k < saved.parameters[i].value.elements(); ++k)
      ASSERT_EQ(back.parameters[i].value.as<float>()[k], saved.parameters[i].value.as<float>()[k]);
  // The optimizer's tensors are asked for, and are not there.
  const std::string text = test::io_error_of(
      [&] { Checkpoint::load(folder.file("b.h5"), back.parameters, back.slots(), grid); });
  EXPECT_NE(text.find("missing: /optimizer/tiger/momentum/tokens.weight [13, 6]"),
            std::string::npos)
      << text;
}

// bf16 is stored as it is, on any grid, and converted where the model keeps something else: widened
// exactly, rounded to nearest.
TEST(Checkpoint, StateInBf16) {
  for (const int compression : {0, 4}) {
    ProcessGrid grid(test::runtime(), grids().back());
    const test::ScratchFolder folder(&grid.world());
    SmallModel saved(grid, 1, DType::f32, DType::bf16), in_f32(grid, 2);
    Checkpoint::save(folder.file("a.h5"), test::example_info(), saved.parameters, saved.slots(),
                     compression, grid);
    {
      const Hdf5File file(folder.file("a.h5"), Hdf5File::Mode::read);
      EXPECT_EQ(file.info("/model/qkv.weight").dtype, DType::bf16);
      EXPECT_EQ(file.info("/optimizer/tiger/momentum/qkv.weight").dtype, DType::bf16);
      EXPECT_EQ(file.info("/model/norm.gain").dtype, DType::f32);
    }
    for (const GridShape to : grids()) {
      ProcessGrid other(test::runtime(), to);
      const SmallModel expected(other, 1, DType::f32, DType::bf16);
      SmallModel loaded(other, 99, DType::f32, DType::bf16);
      Checkpoint::load(folder.file("a.h5"), loaded.parameters, loaded.slots(), other);
      EXPECT_EQ(loaded.bits(), expected.bits()) << text_of(to);
    }
    Checkpoint::load(folder.file("a.h5"), in_f32.parameters, in_f32.slots(), grid);
    for (size_t i = 0; i < saved.parameters.size(); ++i) {
      Tensor widened(saved.parameters[i].value.shape(), DType::f32);
      cast(saved.parameters[i].value, widened);
      for (int64_t k = 0; k < widened.elements(); ++k)
        ASSERT_EQ(in_f32.parameters[i].value.as<float>()[k], widened.as<float>()[k]);
    }
    // f32 values to the nearest bf16, which is how the model begins.
    SmallModel exact(grid, 1), rounded(grid, 3, DType::f32, DType::bf16);
    Checkpoint::save(folder.file("b.h5"), test::example_info(), exact.parameters, exact.slots(),
                     compression, grid);
    Checkpoint::load(folder.file("b.h5"), rounded.parameters, rounded.slots(), grid);
    for (size_t i = 0; i < saved.parameters.size(); ++i)
      for (int64_t k = 0; k < rounded.parameters[i].value.elements(); ++k) {
        if (rounded.parameters[i].value.dtype() != DType::bf16) continue;
        ASSERT_EQ(rounded.parameters[i].value.as<bf16>()[k].bits,
                  bf16(exact.parameters[i].value.as<float>()[k]).bits);
      }
  }
}

TEST(Checkpoint, ReportsAllDifferencesOfTheModelAtOnce) {
  ProcessGrid grid(test::runtime(), grids().front());
  const test::ScratchFolder folder(&grid.world());
  SmallModel saved(grid);
  Checkpoint::save(folder.file("a.h5"), test::example_info(), saved.parameters, saved.slots(), 0,
                   grid);
  ParameterSet other;
  const auto add = [&](const char* name, std::vector<Axis> axes) {
    Parameter p;
    p.name = name;
    p.axes = std::move(axes);
    other.add(std::move(p));
  };
  add("tokens.weight", {{14, AxisRole::vocab}, {6, AxisRole::model}});
  add("scale", {{1, AxisRole::fixed}});
  add("new.weight", {{2, AxisRole::model}, {3, AxisRole::model}});
  add("norm.gain", {{6, AxisRole::model}});
  other.allocate(DType::f32, Device::cpu(), 0, 1);
  const std::string text =
      test::io_error_of([&] { Checkpoint::load(folder.file("a.h5"), other, {}, grid); });
  for (const char* line :
       {"shape: /model/tokens.weight is [13, 6] in the file, [14, 6] here",
        "shape: /model/scale is [] in the file, [1] here", "missing: /model/new.weight [2, 3]",
        "unexpected: /model/qkv.weight [3, 4, 5, 6]", "unexpected: /model/out.weight [6, 4, 5]",
        "unexpected: /model/up.weight [2, 2, 8]", "unexpected: /model/nothing [0]"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\nin\n" << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 7) << text;
}

TEST(Checkpoint, FailuresAreOneErrorEverywhereAndLeaveNothing) {
  ProcessGrid grid(test::runtime(), grids().front());
  const test::ScratchFolder folder(&grid.world());
  SmallModel model(grid);
  const auto save_to = [&](const std::string& path) {
    return test::io_error_of([&] {
      Checkpoint::save(path, test::example_info(), model.parameters, model.slots(), 0, grid);
    });
  };
  EXPECT_NE(save_to(folder.file("missing/a.h5")).find("No such file or directory"),
            std::string::npos);
  // A folder stands where the file should be: everything is written, only the name cannot be had.
  if (grid.world().rank() == 0) {
    std::filesystem::create_directory(folder.file("b.h5"));
    test::write_file(folder.file("b.h5/x"), {'x'});
  }
  grid.world().barrier();
  EXPECT_NE(save_to(folder.file("b.h5")).find("cannot rename"), std::string::npos);
  grid.world().barrier();
  EXPECT_FALSE(std::filesystem::exists(folder.file("b.h5.tmp")));

  EXPECT_NE(test::io_error_of([&] {
              Checkpoint::read_info(folder.file("none.h5"), &grid);
            }).find("No such file"),
            std::string::npos);
  if (grid.world().rank() == 0)
    test::write_file(folder.file("text.h5"), std::vector<char>(4000, 'a'));
  grid.world().barrier();
  EXPECT_NE(test::io_error_of([&] {
              Checkpoint::load(folder.file("text.h5"), model.parameters, {}, grid);
            }).find("text.h5"),
            std::string::npos);
}

// A limit on the size of files stands for the full disk: on the rank that lays the file out, in the
// middle of its structure and just before its end.
TEST(Checkpoint, AFullDiskIsOneErrorEverywhereAndTheOldFileStays) {
  ProcessGrid grid(test::runtime(), grids().front());
  const test::ScratchFolder folder(&grid.world());
  const std::string path = folder.file("a.h5");
  SmallModel old(grid, 1), model(grid, 2);
  const auto save = [&](SmallModel& m) {
    Checkpoint::save(path, test::example_info(), m.parameters, m.slots(), 0, grid);
  };
  save(old);
  const auto size = static_cast<rlim_t>(std::filesystem::file_size(path));
  std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {rlim_t{4096}, size - 1}) {
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit tight{limit, before.rlim_max};
    const bool limited = grid.world().rank() == 0;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, limited ? &tight : &before), 0);
    const std::string text = test::io_error_of([&] { save(model); });
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_NE(text.find("File too large"), std::string::npos) << text;
    grid.world().barrier();
    EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
    SmallModel loaded(grid, 3);
    Checkpoint::load(path, loaded.parameters, loaded.slots(), grid);
    EXPECT_EQ(loaded.bits(), old.bits());
  }
  save(model);  // and then there is room again
  SmallModel loaded(grid, 3);
  Checkpoint::load(path, loaded.parameters, loaded.slots(), grid);
  EXPECT_EQ(loaded.bits(), model.bits());
}

TEST(Checkpoint, ReplacesAnOlderFileOfTheSameName) {
  ProcessGrid grid(test::runtime(), grids().front());
  const test::ScratchFolder folder(&grid.world());
  for (const uint64_t seed : {1u, 2u}) {
    SmallModel model(grid, seed);
    Checkpoint::save(folder.file("a.h5"), test::example_info(static_cast<int64_t>(seed)),
                     model.parameters, model.slots(), 0, grid);
  }
  SmallModel loaded(grid, 3);
  Checkpoint::load(folder.file("a.h5"), loaded.parameters, loaded.slots(), grid);
  EXPECT_EQ(loaded.bits(), SmallModel(grid, 2).bits());
  EXPECT_EQ(Checkpoint::read_info(folder.file("a.h5"), &grid).step, 2);
}

TEST(Checkpoint, NamesADamagedTensor) {
  ProcessGrid grid(test::runtime(), grids().back());
  const test::ScratchFolder folder(&grid.world());
  SmallModel model(grid);
  Checkpoint::save(folder.file("a.h5"), test::example_info(), model.parameters, model.slots(), 0,
                   grid);
  SmallModel whole_on_rank_0(grid);
  if (grid.world().rank() == 0) {
    // Element (0, 0) of the table stands once in the file's data.
    std::vector<char> bytes = test::bytes_of_file(folder.file("a.h5"));
    const auto* value = reinterpret_cast<const char*>(model.parameters[0].value.view().raw());
    const auto at = std::search(bytes.begin(), bytes.end(), value, value + 24);
    ASSERT_NE(at, bytes.end());
    *at = static_cast<char>(*at ^ 1);
    test::write_file(folder.file("a.h5"), bytes);
  }
  grid.world().barrier();
  const std::string text = test::io_error_of(
      [&] { Checkpoint::load(folder.file("a.h5"), model.parameters, model.slots(), grid); });
  EXPECT_NE(text.find("/model/tokens.weight"), std::string::npos) << text;
  EXPECT_NE(text.find("damaged"), std::string::npos) << text;
}

}  // namespace
}  // namespace amur
