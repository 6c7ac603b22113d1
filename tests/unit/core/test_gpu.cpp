// Finding a GPU back end, and memory behind one. No GPU is needed: the back ends are pretended.
#include "src/core/gpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "src/core/error.h"
#include "src/core/tensor.h"

namespace amur {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char* const kNoDriver = "libamur_no_such_driver.so.1";

// Every way to have no GPU is told, with what to do. Before one is found, nothing can be on it.
TEST(FindGpus, SaysWhatIsMissing) {
  EXPECT_THROW(Tensor({3}, DType::f32, Device::cuda()), UsageError);
  EXPECT_THROW(gpu_backend(), UsageError);

  GpuSearch search = find_gpus("/no/such/libamur_cuda.so", AMUR_FAKE_DRIVER, true);
  EXPECT_THAT(search.problem, HasSubstr("no GPU back end (/no/such/libamur_cuda.so"));
  EXPECT_THAT(search.remedy, HasSubstr("CUDA toolkit"));

  const std::string broken = std::filesystem::temp_directory_path() /
                             fmt::format("amur_broken_{}.so", static_cast<int>(getpid()));
  std::ofstream(broken) << "not a library";
  search = find_gpus(broken, AMUR_FAKE_DRIVER, false);
  EXPECT_THAT(search.problem, HasSubstr("cannot be loaded: " + broken));
  std::filesystem::remove(broken);

  search = find_gpus(AMUR_OTHER_GPU, AMUR_FAKE_DRIVER, false);
  EXPECT_THAT(search.problem,
              HasSubstr("was built for amur 0.0.0 (another), this program for amur"));
  EXPECT_THAT(search.libraries, IsEmpty());
  search = find_gpus(AMUR_FAKE_DRIVER, AMUR_FAKE_DRIVER, false);
  EXPECT_THAT(search.problem, HasSubstr("was built for nothing that this program knows"));

  // Without a driver the back end is loaded, and looked at, only by who is thorough.
  search = find_gpus(AMUR_FAKE_GPU, kNoDriver, false);
  EXPECT_THAT(search.problem, HasSubstr("no NVIDIA driver (libamur_no_such_driver.so.1"));
  EXPECT_THAT(search.libraries, IsEmpty());
  search = find_gpus(AMUR_FAKE_GPU, kNoDriver, true);
  EXPECT_THAT(search.problem, HasSubstr("no NVIDIA driver"));
  EXPECT_EQ(search.libraries, "a pretended GPU");
  EXPECT_THAT(find_gpus(AMUR_OTHER_GPU, kNoDriver, false).problem, HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(find_gpus(AMUR_OTHER_GPU, kNoDriver, true).problem, HasSubstr("was built for"));

  setenv("FAKE_GPU_PROBLEM", "the pretender sleeps", 1);
  search = find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false);
  unsetenv("FAKE_GPU_PROBLEM");
  EXPECT_EQ(search.problem, "the pretender sleeps");
  EXPECT_EQ(search.remedy, "mend it");
  EXPECT_EQ(search.gpus.size(), 1u);
  EXPECT_FALSE(search.usable());
  EXPECT_THROW(gpu_backend(), UsageError);
}

// The last test of this program: a GPU that was found stays.
TEST(GpuMemory, GoesThroughTheBackEnd) {
  const GpuSearch search = find_gpus(AMUR_FAKE_GPU, AMUR_FAKE_DRIVER, false);
  ASSERT_TRUE(search.usable()) << search.problem;
  EXPECT_EQ(search.gpus[0].text(), "Pretender (sm_90, 1.0 GiB)");

  const Device gpu = Device::cuda();
  const size_t on_cpu = memory_use(Device::cpu()).now;
  Tensor host({5}, DType::f32);
  for (int i = 0; i < 5; ++i) host.as<float>()[i] = static_cast<float>(i);
  {
    Tensor there({5}, DType::f32, gpu), back({5}, DType::f32);
    EXPECT_EQ(there.device().text(), "cuda:0");
    EXPECT_EQ(memory_use(gpu).now, 20u);
    copy(there, host, Stream(gpu));
    copy(back, there);
    EXPECT_EQ(std::memcmp(back.as<float>(), host.as<float>(), 20), 0);
    fill_zero(there);
    copy(back, there);
    EXPECT_EQ(back.as<float>()[4], 0);
    Event event, moved;
    event.record(Stream(gpu));
    moved = std::move(event);
    moved.wait(Stream(gpu));
    Stream(gpu).synchronize();
  }
  EXPECT_EQ(memory_use(gpu).now, 0u);
  EXPECT_EQ(memory_use(gpu).peak, 20u);
  EXPECT_EQ(memory_use(Device::cpu()).now, on_cpu + 20);
  EXPECT_EQ(gpu_backend().peak_bytes(gpu), 20u);
  try {
    Tensor({int64_t{1} << 30}, DType::f32, gpu);
    ADD_FAILURE() << "4 GiB of 1";
  } catch (const MemoryError& error) {
    EXPECT_EQ(error.free(), size_t{1} << 30);
    EXPECT_THAT(error.what(), HasSubstr("4.000 GiB were asked for, but only 1.000 of 1.000 GiB"));
  }
  EXPECT_EQ(memory_use(gpu).now, 0u);
  EXPECT_THROW(Tensor({1}, DType::f32, Device::cuda(99)), InternalError);
}

}  // namespace
}  // namespace amur
