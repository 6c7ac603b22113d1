// What emulated GPUs find: each kernel that does what it may not do is caught, and told why.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace amur::emulation {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr unsigned kThreads = 64;

class Emulation : public ::testing::Test {
 protected:
  void SetUp() override {
    set_orders(Orders::both);
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  }
  void TearDown() override { EXPECT_THAT(take_failure(), IsEmpty()); }
};

template <class T>
class Memory {
 public:
  explicit Memory(size_t count) : count_(count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocAsync(&memory, count * sizeof(T), nullptr), cudaSuccess);
    memory_ = static_cast<T*>(memory);
  }
  ~Memory() { cudaFreeAsync(memory_, nullptr); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  T* data() const { return memory_; }
  std::vector<T> values() const {
    T* there = pinned();
    EXPECT_EQ(cudaMemcpyAsync(there, memory_, count_ * sizeof(T), cudaMemcpyDeviceToHost, nullptr),
              cudaSuccess);
    cudaStreamSynchronize(nullptr);
    return {there, there + count_};
  }
  static T* pinned() {
    static void* host = nullptr;
    if (!host) cudaHostAlloc(&host, 4096 * sizeof(T), cudaHostAllocDefault);
    return static_cast<T*>(host);
  }

 private:
  size_t count_;
  T* memory_ = nullptr;
};

// --- what is allowed

template <bool waits>
__global__ void reverse_kernel(const int* from, int* to) {
  __shared__ int all[kThreads];
  all[threadIdx.x] = from ? from[threadIdx.x] : static_cast<int>(threadIdx.x);
  if (waits) __syncthreads();
  to[blockIdx.x * kThreads + threadIdx.x] = all[kThreads - 1 - threadIdx.x];
}

TEST_F(Emulation, RunsBlocksAndThreads) {
  const Memory<int> to(2 * kThreads);
  reverse_kernel<true><<<2, kThreads, 0, nullptr>>>(nullptr, to.data());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  const std::vector<int> values = to.values();
  for (unsigned i = 0; i < 2 * kThreads; ++i)
    EXPECT_EQ(values[i], static_cast<int>(kThreads - 1 - i % kThreads));
}

__global__ void warp_kernel(unsigned* sums, unsigned* odd) {
  unsigned sum = threadIdx.x;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  sums[threadIdx.x] = sum;
  odd[threadIdx.x] = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 1);
}

TEST_F(Emulation, RunsWarps) {
  const Memory<unsigned> sums(kThreads), odd(kThreads);
  warp_kernel<<<1, kThreads, 0, nullptr>>>(sums.data(), odd.data());
  const std::vector<unsigned> values = sums.values();
  EXPECT_EQ(values[3], 31u * 32 / 2);
  EXPECT_EQ(values[40], 31u * 32 / 2 + 32 * 32);
  EXPECT_THAT(odd.values(), Each(0xaaaaaaaau));
}

// --- what is not

TEST_F(Emulation, FindsAMissingBarrier) {
  const Memory<int> to(kThreads);
  reverse_kernel<false><<<1, kThreads, 0, nullptr>>>(nullptr, to.data());
  EXPECT_THAT(take_failure(), HasSubstr("reverse_kernel<false>: its results depend on the order"));
  // One direction alone sees what was never written.
  set_orders(Orders::forward);
  reverse_kernel<false><<<1, kThreads, 0, nullptr>>>(nullptr, to.data());
  EXPECT_EQ(to.values()[0], -1);
  EXPECT_EQ(to.values()[kThreads - 1], 0);
}

__global__ void last_block_kernel(unsigned* to) {
  to[0] = blockIdx.x;
}

TEST_F(Emulation, FindsBlocksThatWriteTheSame) {
  const Memory<unsigned> to(1);
  last_block_kernel<<<3, 1, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr("depend on the order"));
}

// Twice: the second sum may be on its way while others still read the first one.
template <bool waits>
__global__ void two_sums_kernel(unsigned* to) {
  __shared__ unsigned parts[2];
  for (unsigned round = 0; round < 2; ++round) {
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = threadIdx.x + round;
    __syncthreads();
    to[round * kThreads + threadIdx.x] = parts[0] + parts[1];
    if (waits) __syncthreads();
  }
}

TEST_F(Emulation, FindsSharedMemoryWrittenTooEarly) {
  const Memory<unsigned> to(2 * kThreads);
  two_sums_kernel<true><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), IsEmpty());
  two_sums_kernel<false><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr("depend on the order"));
}

enum class Divergence { two_barriers, some_end, some_lanes, two_instructions };

template <Divergence how>
__global__ void divergent_kernel(unsigned* to) {
  const unsigned i = threadIdx.x;
  unsigned value = i;
  if (how == Divergence::two_barriers) {
    if (i < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  if (how == Divergence::some_end && i != 5) __syncthreads();
  if (how == Divergence::some_lanes && i % 32 != 7) value = __shfl_xor_sync(0xffffffffu, value, 1);
  if (how == Divergence::two_instructions) {
    if (i % 32 < 16)
      value = __shfl_xor_sync(0xffffffffu, value, 1);
    else
      value = __shfl_xor_sync(0xffffffffu, value, 2);
  }
  to[i] = value;
}

TEST_F(Emulation, FindsThreadsThatGoDifferentWays) {
  const Memory<unsigned> to(kThreads);
  divergent_kernel<Divergence::two_barriers><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr("thread (32, 0, 0): it waits at the barrier "));
  divergent_kernel<Divergence::some_end><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr(" 5-5 have ended, 6-63 at the barrier "));
  divergent_kernel<Divergence::some_lanes><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr(" 7-7 have ended, 8-38 at the warp instruction "));
  divergent_kernel<Divergence::two_instructions><<<1, kThreads, 0, nullptr>>>(to.data());
  EXPECT_THAT(take_failure(), HasSubstr("thread (16, 0, 0): it is at the warp instruction "));
}

__global__ void write_kernel(int* to, int64_t at) {
  if (threadIdx.x == 3) to[at] = 1;
}
__global__ void read_kernel(const int* from, int64_t at, int* to) {
  to[0] = from[at];
}

TEST_F(Emulation, FindsWhatIsOutsideOfAllocations) {
  {
    const Memory<int> whole(64), other(64);  // 256 bytes: the next page is forbidden
    write_kernel<<<1, 4, 0, nullptr>>>(whole.data(), 64);
    EXPECT_THAT(take_failure(),
                HasSubstr("write_kernel, block (0, 0, 0), thread (3, 0, 0): it touches"));
    read_kernel<<<1, 1, 0, nullptr>>>(whole.data(), -1025, other.data());
    EXPECT_THAT(take_failure(), HasSubstr("no memory of its device"));
    write_kernel<<<1, 4, 0, nullptr>>>(nullptr, 0);
    EXPECT_THAT(take_failure(), HasSubstr("it touches"));
  }
  {
    const Memory<int> part(63);
    write_kernel<<<1, 4, 0, nullptr>>>(part.data(), 63);
    EXPECT_THAT(take_failure(), IsEmpty());
  }
  EXPECT_THAT(take_failure(), HasSubstr("something wrote behind the end of 252 bytes"));

  int* gone = nullptr;
  {
    const Memory<int> memory(4);
    gone = memory.data();
  }
  write_kernel<<<1, 4, 0, nullptr>>>(gone, 0);
  EXPECT_THAT(take_failure(), HasSubstr("it touches"));
}

TEST_F(Emulation, MemoryBelongsToOneDevice) {
  const Memory<int> first(4);
  cudaSetDevice(1);
  write_kernel<<<1, 4, 0, nullptr>>>(first.data(), 0);
  EXPECT_THAT(take_failure(), HasSubstr("no memory of its device"));
  EXPECT_EXIT(first.data()[0] = 1, ::testing::KilledBySignal(SIGSEGV), "");
}

__global__ void shared_kernel(size_t at) {
  extern __shared__ int mine[];
  mine[at] = 1;
}
__global__ void large_array_kernel() {
  __shared__ int mine[12289];
  mine[0] = 1;
}

TEST_F(Emulation, FindsWhatIsWrongWithSharedMemory) {
  shared_kernel<<<1, 1, 48, nullptr>>>(11);
  EXPECT_THAT(take_failure(), IsEmpty());
  shared_kernel<<<1, 1, 48, nullptr>>>(12);
  EXPECT_THAT(take_failure(), HasSubstr("outside of its shared memory"));
  shared_kernel<<<1, 1, 44, nullptr>>>(11);
  EXPECT_THAT(take_failure(), HasSubstr("behind or before its shared memory"));
  shared_kernel<<<1, 1, 48, nullptr>>>(size_t(-1));
  EXPECT_THAT(take_failure(), HasSubstr("behind or before its shared memory"));

  shared_kernel<<<1, 1, (48 << 10) + 4, nullptr>>>(0);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  const auto* function = reinterpret_cast<const void*>(shared_kernel);
  const auto name = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT_EQ(cudaFuncSetAttribute(function, name, (99 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(function, name, 99 << 10), cudaSuccess);
  shared_kernel<<<1, 1, 99 << 10, nullptr>>>((99 << 8) - 1);
  EXPECT_THAT(take_failure(), IsEmpty());
  large_array_kernel<<<1, 1, 0, nullptr>>>();
  EXPECT_THAT(take_failure(), HasSubstr("49156 bytes of shared memory"));
}

TEST_F(Emulation, FindsLaunchesThatNoDeviceTakes) {
  const Memory<int> to(4);
  const auto refused = [] { return cudaGetLastError() == cudaErrorInvalidConfiguration; };
  write_kernel<<<1, 1025, 0, nullptr>>>(to.data(), 0);
  EXPECT_TRUE(refused());
  write_kernel<<<0, 32, 0, nullptr>>>(to.data(), 0);
  EXPECT_TRUE(refused());
  write_kernel<<<dim3(1, 65536), 32, 0, nullptr>>>(to.data(), 0);
  EXPECT_TRUE(refused());
  write_kernel<<<1, 1024, 0, nullptr>>>(to.data(), 0);
  EXPECT_FALSE(refused());
}

// What nobody wrote is NaN, or -1.
__global__ void unwritten_kernel(float* to) {
  __shared__ float array[2];
  extern __shared__ float asked[];
  to[0] = array[1];
  to[1] = asked[0];
}

TEST_F(Emulation, UnwrittenMemoryIsPoisoned) {
  const Memory<float> to(3);
  unwritten_kernel<<<1, 1, 4, nullptr>>>(to.data());
  for (const float value : to.values()) EXPECT_TRUE(std::isnan(value));
}

// Operations wait until the host does; the first failure stays.
TEST_F(Emulation, WorkIsLateAndErrorsStay) {
  const Memory<int> memory(1);
  int* host = Memory<int>::pinned();
  host[0] = 1;
  cudaMemcpyAsync(memory.data(), host, sizeof(int), cudaMemcpyHostToDevice, nullptr);
  host[0] = 2;  // too early
  EXPECT_EQ(memory.values()[0], 2);

  int ordinary = 0;
  EXPECT_EQ(cudaMemcpyAsync(&ordinary, memory.data(), sizeof(int), cudaMemcpyDeviceToHost, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(memory.data(), 0, 5, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);

  write_kernel<<<1, 4, 0, nullptr>>>(memory.data(), 64);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_THAT(cudaGetErrorString(cudaErrorLaunchFailure), HasSubstr("write_kernel"));
  write_kernel<<<1, 4, 0, nullptr>>>(memory.data(), 0);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorLaunchFailure);
  EXPECT_THAT(take_failure(), HasSubstr("write_kernel"));
}

TEST_F(Emulation, MemoryEnds) {
  void* memory = nullptr;
  EXPECT_EQ(cudaMallocAsync(&memory, size_t{2} << 30, nullptr), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
}

}  // namespace
}  // namespace amur::emulation
