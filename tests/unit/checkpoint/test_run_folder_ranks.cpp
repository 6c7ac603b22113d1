// A run folder opened by all ranks, with checkpoints in it.
#include <chrono>
#include <fstream>
#include <thread>

#include "src/train/checkpoint/run_folder.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using test::SmallModel;

std::string text_of(const std::string& path) {
  const std::vector<char> bytes = test::bytes_of_file(path);
  return {bytes.begin(), bytes.end()};
}

void save(RunFolder& folder, int64_t step, ProcessGrid& grid) {
  SmallModel model(grid, static_cast<uint64_t>(step));
  Checkpoint::save(folder.checkpoint_path(step), test::example_info(step), model.parameters,
                   model.slots(), 0, grid);
}

TEST(RunFolderRanks, KeepsWhatItShouldAndFindsTheNewest) {
  ProcessGrid grid(test::runtime(), {test::runtime().size(), 1});
  const bool first = grid.world().rank() == 0;
  const test::ScratchFolder scratch(&grid.world());
  const std::string run = scratch.file("deep/run");
  CheckpointConfig config;
  config.keep = 2;
  {
    RunFolder folder(run, grid);
    EXPECT_FALSE(folder.has_checkpoints());
    EXPECT_EQ(Checkpoint::newest_complete(folder.checkpoints_dir()), std::nullopt);
    folder.start("a: 1\n", 0);
    for (int64_t step : {10, 20, 30, 40}) {
      if (first) folder.append_metrics(fmt::format("{{\"step\":{}}}", step));
      if (first) folder.append_evaluation(step, "{\"recall\": 0.5}");
      save(folder, step, grid);
      folder.publish(step, config, {{"recall@1", 0.5}, {"step", 10}});
    }
    grid.world().barrier();
    EXPECT_TRUE(folder.has_checkpoints());
    for (const auto& [step, kept] : {std::pair{10, true}, {20, false}, {30, true}, {40, true}})
      EXPECT_EQ(fs::exists(folder.checkpoint_path(step)), kept) << step;
    EXPECT_EQ(fs::read_symlink(run + "/checkpoints/latest"), "step-00000040.h5");
    EXPECT_EQ(Checkpoint::newest_complete(folder.checkpoints_dir()), folder.checkpoint_path(40));
    EXPECT_EQ(text_of(run + "/config.yaml"), "a: 1\n");
    // The folder is in use, on every rank.
    EXPECT_THROW(RunFolder(run, grid), UsageError);
    grid.world().barrier();
    if (first) {  // the newest is damaged, and a killed write left its beginning
      std::vector<char> bytes = test::bytes_of_file(folder.checkpoint_path(40));
      bytes.resize(bytes.size() / 2);
      test::write_file(folder.checkpoint_path(40), bytes);
      test::write_file(folder.checkpoint_path(50) + ".tmp", bytes);
    }
    grid.world().barrier();
  }
  RunFolder folder(run, grid);
  EXPECT_FALSE(fs::exists(folder.checkpoint_path(50) + ".tmp"));
  EXPECT_EQ(Checkpoint::newest_complete(folder.checkpoints_dir()), folder.checkpoint_path(30));
  folder.start("a: 2\n", 30);
  grid.world().barrier();
  EXPECT_EQ(text_of(run + "/metrics.jsonl"), "{\"step\":10}\n{\"step\":20}\n{\"step\":30}\n");
  EXPECT_EQ(text_of(run + "/evaluation.jsonl"),
            "{\"step\":10,\"recall\":0.5}\n{\"step\":20,\"recall\":0.5}\n"
            "{\"step\":30,\"recall\":0.5}\n");
  grid.world().barrier();
}

TEST(RunFolderRanks, KilledBeforeTheLink) {
  ProcessGrid grid(test::runtime(), {test::runtime().size(), 1});
  const test::ScratchFolder scratch(&grid.world());
  RunFolder folder(scratch.file("run"), grid);
  const auto tick = [&] {  // of the file system's clock
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    grid.world().barrier();
  };
  const auto newest = [&] {
    grid.world().barrier();
    return Checkpoint::newest_complete(folder.checkpoints_dir());
  };
  CheckpointConfig config;
  config.keep = 9;
  for (int64_t step : {10, 30}) {
    save(folder, step, grid);
    folder.publish(step, config, {});
  }
  tick();
  if (grid.world().rank() == 0) {  // somebody looked into an old one, and left a new date
    const std::string old = folder.checkpoint_path(10);
    test::write_file(old, test::bytes_of_file(old));
  }
  EXPECT_EQ(newest(), folder.checkpoint_path(30));
  save(folder, 40, grid);
  EXPECT_EQ(newest(), folder.checkpoint_path(40));
  tick();
  save(folder, 20, grid);  // of a run that was sent back
  folder.publish(20, config, {});
  EXPECT_EQ(newest(), folder.checkpoint_path(20));
  grid.world().barrier();
}

TEST(RunFolderRanks, CannotBeAFile) {
  ProcessGrid grid(test::runtime(), {test::runtime().size(), 1});
  const test::ScratchFolder scratch(&grid.world());
  if (grid.world().rank() == 0) test::write_file(scratch.file("run"), {'x'});
  grid.world().barrier();
  const std::string text = test::io_error_of([&] { RunFolder(scratch.file("run"), grid); });
  EXPECT_NE(text.find("run"), std::string::npos);
}

}  // namespace
}  // namespace amur
