// Checkpoints written beside the work of the caller, which goes on with collectives of its own.
#include <filesystem>
#include <thread>

#include "src/train/checkpoint/checkpoint_writer.h"
#include "tests/unit/checkpoint/fixture.h"

namespace amur {
namespace {

namespace fs = std::filesystem;
using test::SmallModel;

// A training step as the writer sees it: every value changes, and the ranks talk to each other.
void pretend_step(SmallModel& model, int64_t step, ProcessGrid& grid) {
  for (Parameter& p : model.parameters)
    for (int64_t i = 0; i < p.value.elements(); ++i)
      p.value.as<float>()[i] += 0.25f * static_cast<float>(step);
  Tensor sums = Tensor::zeros({1000}, DType::f32);
  for (int turn = 0; turn < 5; ++turn) {
    grid.world().all_reduce(sums, ReduceOp::sum);
    grid.world().synchronize();
  }
  EXPECT_EQ(grid.world().sum(int64_t{1}), grid.world().size());
}

TEST(CheckpointWriter, BesideTheTrainingAsWhileItWaits) {
  ProcessGrid grid(test::runtime(), {test::runtime().size(), 1});
  const test::ScratchFolder scratch(&grid.world());
  Config config;
  config.checkpoint.keep = 10;
  std::vector<std::vector<char>> files[2];
  for (const bool beside : {false, true}) {
    config.checkpoint.async = beside ? CheckpointAsync::on : CheckpointAsync::off;
    SmallModel model(grid);
    RunFolder folder(scratch.file(beside ? "beside" : "waiting"), grid);
    CheckpointWriter writer(config, model.parameters, model.slots(), "tiger", folder, grid,
                            test::runtime());
    EXPECT_EQ(writer.beside_training(), beside);
    EXPECT_EQ(writer.snapshot_bytes() > 0, beside);
    for (int64_t step = 1; step <= 6; ++step) {
      pretend_step(model, step, grid);
      // The fourth comes while the third may still be under way.
      if (step != 2) writer.save(test::example_info(step));
      EXPECT_FALSE(writer.failed());
    }
    writer.wait();
    EXPECT_GT(writer.last_seconds(), 0);
    for (const int64_t step : {1, 3, 4, 5, 6})
      files[beside].push_back(test::bytes_of_file(folder.checkpoint_path(step)));
    EXPECT_EQ(fs::read_symlink(folder.checkpoints_dir() + "/latest"), "step-00000006.h5");
    grid.world().barrier();
  }
  EXPECT_EQ(files[0], files[1]);
  EXPECT_NE(files[0][0], files[0][1]);
}

TEST(CheckpointWriter, FailureReachesEveryRankAndTheNextOneWorks) {
  ProcessGrid grid(test::runtime(), {test::runtime().size(), 1});
  const test::ScratchFolder scratch(&grid.world());
  Config config;
  config.checkpoint.async = CheckpointAsync::on;
  SmallModel model(grid);
  RunFolder folder(scratch.file("run"), grid);
  const std::string place = folder.checkpoints_dir(), away = place + "-away";
  {
    CheckpointWriter writer(config, model.parameters, model.slots(), "tiger", folder, grid,
                            test::runtime());
    if (grid.world().rank() == 0) fs::rename(place, away);
    grid.world().barrier();
    writer.save(test::example_info(1));
    while (!writer.failed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::string text = test::io_error_of([&] { writer.wait(); });
    EXPECT_NE(text.find("step-00000001.h5"), std::string::npos) << text;
    EXPECT_FALSE(writer.failed());
    grid.world().barrier();
    if (grid.world().rank() == 0) fs::rename(away, place);
    grid.world().barrier();
    writer.save(test::example_info(2));
    pretend_step(model, 2, grid);
  }  // waits for the second
  EXPECT_EQ(Checkpoint::newest_complete(place), folder.checkpoint_path(2));
  grid.world().barrier();
}

}  // namespace
}  // namespace amur
