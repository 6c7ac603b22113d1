// Files that are not as they were written: every bit flip and every cut is refused or harmless, and
// never a crash. Also what `amur inspect` says of them, and the fixture of version 1.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <nlohmann/json.hpp>

#include "src/core/random.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/checkpoint/hdf5_file.h"
#include "src/train/checkpoint/inspect.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

using test::SmallModel;

class Damage : public ::testing::Test {
 protected:
  ProcessGrid grid{test::runtime(), {1, 1}};
  test::ScratchFolder folder;
  std::string path = folder.file("a.h5");
  SmallModel model{grid};
  std::vector<char> original;

  void SetUp() override {
    Checkpoint::save(path, test::example_info(), model.parameters, model.slots(), 0, grid);
    original = test::bytes_of_file(path);
  }
  // Whether the damaged file is refused; what is not refused must be what was saved.
  bool refused(const std::vector<char>& bytes) {
    const std::string damaged = folder.file("damaged.h5");
    test::write_file(damaged, bytes);
    SmallModel loaded(grid, 2);
    CheckpointInfo info;
    try {
      info = Checkpoint::read_info(damaged);
      Checkpoint::load(damaged, loaded.parameters, loaded.slots(), grid);
    } catch (const IoError& e) {
      EXPECT_GT(std::string(e.what()).size(), 20u);
      return true;
    }
    test::expect_equal(info, test::example_info());
    EXPECT_EQ(loaded.bits(), model.bits());
    return false;
  }
};

TEST_F(Damage, TheWholeFileIsNotRefused) {
  EXPECT_FALSE(refused(original));
}

TEST_F(Damage, EveryFlippedBitIsRefusedOrHarmless) {
  const RandomKey key = RandomKey(1).fold(static_cast<uint64_t>(RandomPurpose::probe));
  int refusals = 0, total = 0;
  const auto try_byte = [&](size_t at, uint64_t bit) {
    std::vector<char> bytes = original;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
    const bool was_refused = refused(bytes);
    refusals += was_refused;
    ++total;
    EXPECT_FALSE(HasFailure()) << "byte " << at << " bit " << bit;
  };
  for (size_t at = 0; at < 64; ++at) try_byte(at, at % 8);  // the superblock
  for (uint64_t i = 0; i < 1200 && !HasFailure(); ++i)
    try_byte(key.below(2 * i, original.size()), key.below(2 * i + 1, 8));
  EXPECT_GT(refusals, total / 2);  // the rest are gaps between objects
}

// The library then keeps an identifier of what it has freed, and MPI_Finalize must not make it
// look.
TEST_F(Damage, AFileThatCannotBeClosedIsSaidToBeSo) {
  Hdf5File file(path, Hdf5File::Mode::write);
  file.set_attribute("/", "more", int64_t{1});
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit none{0, limit.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  std::string message;
  try {
    file.close();
  } catch (const IoError& e) {
    message = e.what();
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find("cannot be closed: file write failed"), std::string::npos) << message;
}

TEST_F(Damage, EveryCutIsRefused) {
  for (size_t length = 0; length < original.size(); length += 97) {
    EXPECT_TRUE(refused({original.begin(), original.begin() + static_cast<std::ptrdiff_t>(length)}))
        << length;
  }
  EXPECT_TRUE(refused({original.begin(), original.end() - 1}));
}

TEST_F(Damage, IncompleteOrForeignFilesAreRefused) {
  const auto text_after = [&](const char* attribute, const AttributeValue& value) {
    test::write_file(path, original);
    {
      Hdf5File file(path, Hdf5File::Mode::write);
      file.set_attribute("/", attribute, value);
      file.close();
    }
    return test::io_error_of([&] { Checkpoint::read_info(path); });
  };
  EXPECT_NE(text_after("complete", int64_t{0}).find("not written to its end"), std::string::npos);
  EXPECT_NE(text_after("version", int64_t{2}).find("version 2, this program reads version 1"),
            std::string::npos);
  EXPECT_NE(text_after("format", std::string("other")).find("not a checkpoint of Amur"),
            std::string::npos);
  {
    Hdf5File file(folder.file("b.h5"), Hdf5File::Mode::create);
    file.create_group("/model");
    file.close();
  }
  EXPECT_NE(test::io_error_of([&] {
              Checkpoint::read_info(folder.file("b.h5"));
            }).find("not a checkpoint of Amur"),
            std::string::npos);
}

TEST_F(Damage, InspectNamesTheDamagedTensor) {
  InspectOptions options{path, true, true, true};
  InspectResult result = inspect(options);
  EXPECT_EQ(result.exit_code, kExitOk);
  auto report = nlohmann::json::parse(result.output);
  EXPECT_EQ(report["damaged"], false);
  EXPECT_EQ(report["tensors"].size(), 7u + 7u);
  EXPECT_EQ(report["parameters"], 13 * 6 + 3 * 4 * 5 * 6 + 6 * 4 * 5 + 2 * 2 * 8 + 6 + 1);
  EXPECT_EQ(report["state"]["step"], 7);
  EXPECT_EQ(report["lineage"][0]["kind"], "widen");

  const auto* value = static_cast<const char*>(model.parameters[1].value.view().raw());
  const auto at = std::search(original.begin(), original.end(), value, value + 24);
  ASSERT_NE(at, original.end());
  *at = static_cast<char>(*at ^ 64);
  test::write_file(path, original);
  result = inspect(options);
  EXPECT_EQ(result.exit_code, kExitIo);
  report = nlohmann::json::parse(result.output);
  for (const auto& tensor : report["tensors"])
    EXPECT_EQ(tensor["damaged"], tensor["path"] == "/model/qkv.weight") << tensor["path"];
  options.json = false;
  EXPECT_NE(inspect(options).output.find("DAMAGED"), std::string::npos);
}

TEST_F(Damage, InspectGivesTheStatistics) {
  for (Parameter& p : model.parameters) fill_zero(p.value);
  auto* gain = model.parameters.find("norm.gain")->value.as<float>();
  const std::vector<float> values = {1, 2, 3, 4, NAN, INFINITY};
  std::copy(values.begin(), values.end(), gain);
  Checkpoint::save(path, test::example_info(), model.parameters, {}, 3, grid);
  const CheckpointReport report = inspect_checkpoint({path});
  const auto it = std::find_if(report.tensors.begin(), report.tensors.end(),
                               [](const auto& t) { return t.path == "/model/norm.gain"; });
  ASSERT_NE(it, report.tensors.end());
  EXPECT_DOUBLE_EQ(it->statistics.mean, 2.5);
  EXPECT_DOUBLE_EQ(it->statistics.deviation, std::sqrt(1.25));
  EXPECT_DOUBLE_EQ(it->statistics.rms, std::sqrt(7.5));
  EXPECT_EQ(it->statistics.min, 1);
  EXPECT_EQ(it->statistics.max, 4);
  EXPECT_EQ(it->statistics.not_finite, 2);
  EXPECT_TRUE(it->frozen);
  EXPECT_EQ(it->axes, std::vector<std::string>{"model"});
}

// A file that version 1 of the format wrote must be read for ever: this one is never written again.
TEST_F(Damage, TheFixtureOfVersion1IsRead) {
  const std::string fixture = AMUR_TEST_DATA "/fixture_v1.h5";
  CheckpointInfo expected = test::example_info();
  expected.carried.clear();  // written before there were such groups
  expected.conditions.clear();
  test::expect_equal(Checkpoint::read_info(fixture), expected);
  SmallModel loaded(grid, 2);
  Checkpoint::load(fixture, loaded.parameters, loaded.slots(), grid);
  EXPECT_EQ(loaded.bits(), model.bits());
}

}  // namespace
}  // namespace amur
