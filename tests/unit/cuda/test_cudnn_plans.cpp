// cuDNN itself, without a GPU: it accepts our graphs and compiles plans for the shapes of every
// recipe in configs/ and of usual encoders, for GPUs that are described to it. What the plans
// compute is test_cudnn_graphs.cpp's.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "kernels/cuda/cudnn_attention.h"
#include "src/train/config/config.h"
#include "tests/unit/cuda/minilm.h"

namespace amur::cuda {
namespace {

struct Gpu {
  const char* name;
  int version, multiprocessors, shared_memory;  // the latter: bytes that a block may ask for
};
constexpr Gpu kA100{"NVIDIA A100", 800, 108, 166912}, kH200{"NVIDIA H200", 900, 132, 232448},
    kB200{"NVIDIA B200", 1000, 148, 232448};

// In the form that cuDNN writes and reads (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION).
std::string properties(const Gpu& gpu) {
  return fmt::format(
      R"({{"deviceName": "{}", "deviceVer": {}, "multiProcessorCount": {},)"
      R"( "maxSharedMemoryPerBlockOptin": {}, "maxSharedMemoryPerBlock": 49152,)"
      R"( "reservedSharedMemoryPerBlock": 1024, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,)"
      R"( "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],)"
      R"( "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32, "warpSize": 32,)"
      R"( "l2CacheSize": 41943040, "smClockRateKHz": 1410000, "memClockRateKHz": 1593000,)"
      R"( "totalGlobalMem": 85000000000, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,)"
      R"( "isTccDriver": 0, "supportCoopLaunch": 1}})",
      gpu.name, gpu.version, gpu.multiprocessors, gpu.shared_memory);
}

// "" where the plan is there, else why not.
std::string problem_of(const CudnnDevice& device, AttentionDirection direction,
                       const AttentionShape& shape, size_t* workspace = nullptr) {
  try {
    const AttentionPlan plan(device, direction, shape);
    if (workspace) *workspace = plan.workspace();
    return "";
  } catch (const CudnnRefusal& refusal) {
    return refusal.what();
  }
}

constexpr int64_t up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Shapes of a chunk whose longest text has all the tokens that the model takes.
std::set<AttentionShape> shapes() {
  std::set<AttentionShape> all;
  const auto add = [&](int64_t heads, int64_t size, int64_t longest, int64_t tokens) {
    all.insert({sequences_bucket(std::max<int64_t>(1, tokens / longest)), length_bucket(longest),
                heads, size});
  };
  for (const auto& entry : std::filesystem::directory_iterator(AMUR_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    const Config c = load_config(entry.path(), {}, test::minilm);
    if (c.model.layers == 0) continue;
    add(c.model.heads, c.model.resolved_head_size(), c.model.max_length,
        std::min<int64_t>(c.train.chunk_tokens, 1 << 15));
  }
  add(12, 32, 128, 1 << 15);  // MiniLM
  add(12, 64, 32, 1 << 14);   // BERT-base
  add(12, 64, 512, 1 << 14);
  add(16, 64, 300, 1 << 14);  // BERT-large
  return all;
}

TEST(CudnnPlans, AreThereForAnH200) {
  ASSERT_TRUE(find_cudnn().usable()) << find_cudnn().problem;
  const CudnnDevice h200(properties(kH200));
  for (const AttentionShape& s : shapes()) {
    const std::string what = fmt::format("{} texts of up to {} tokens, {} heads of {}", s.sequences,
                                         s.longest, s.heads, s.head_size);
    size_t bytes = 0;
    EXPECT_EQ(problem_of(h200, AttentionDirection::forward, s, &bytes), "") << what;
    EXPECT_LE(bytes, size_t{1} << 20) << what;
    // dS in bf16, by whole tiles (docs/gpu.md).
    EXPECT_EQ(problem_of(h200, AttentionDirection::backward, s, &bytes), "") << what;
    EXPECT_LE(bytes, static_cast<size_t>(2 * s.sequences * s.heads * up(s.longest, 64) *
                                         up(s.longest, 128)) +
                         (1 << 20))
        << what;
  }
}

TEST(CudnnPlans, OtherGpusHaveTheForwardAlone) {
  for (const Gpu& gpu : {kA100, kB200}) {
    const CudnnDevice device(properties(gpu));
    const AttentionShape shape{128, 128, 12, 64};
    EXPECT_EQ(problem_of(device, AttentionDirection::forward, shape), "") << gpu.name;
    EXPECT_NE(problem_of(device, AttentionDirection::backward, shape), "") << gpu.name;
  }
}

TEST(CudnnPlans, WrongDimensionsAreRefused) {
  const CudnnDevice h200(properties(kH200));
  for (const auto direction : {AttentionDirection::forward, AttentionDirection::backward}) {
    EXPECT_EQ(problem_of(h200, direction, {16, 64, 2, 64}), "");
    // Rows that are not a multiple of 16 bytes, by cuDNN; heads and sizes that we ask it for in
    // vain, by us.
    const bool forward = direction == AttentionDirection::forward;
    EXPECT_THAT(problem_of(h200, direction, {16, 64, 2, 60}),
                testing::HasSubstr(forward ? "no engine" : "no multiple of 16"));
    EXPECT_EQ(problem_of(h200, direction, {16, 64, 2, 72}) == "", forward);
    for (const AttentionShape& wrong : {AttentionShape{0, 64, 2, 64},
                                        {16, 0, 2, 64},
                                        {16, 64, 0, 64},
                                        {16, 64, 2, 0},
                                        {16, 64, 2, 136}})
      EXPECT_THAT(problem_of(h200, direction, wrong), testing::HasSubstr("heads of"));
  }
  EXPECT_THROW(CudnnDevice("{}"), CudnnRefusal);
}

}  // namespace
}  // namespace amur::cuda
