// The one place that calls NCCL (comm/device_collectives.h). Communicators are non-blocking: a call
// may return before it is done, and only ncclCommGetAsyncError says when it is.
#include <cuda_runtime.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <deque>

#include "comm/device_collectives.h"
#include "src/core/error.h"

namespace amur {
namespace {

constexpr int kOldest = NCCL_VERSION(2, 18, 1);  // has ncclCommSplit
constexpr const char* kOldestText = "2.18.1";

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw CommError("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status));
}

void check(ncclResult_t status, const char* call, ncclComm_t comm = nullptr) {
  if (status == ncclSuccess || status == ncclInProgress) [[likely]]
    return;
  const char* last = ncclGetLastError(comm);
  throw CommError("{}: {}{}{}", call, ncclGetErrorString(status), last && *last ? ": " : "",
                  last ? last : "");
}

ncclDataType_t nccl_type(DType type) {
  switch (type) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
      return ncclUint8;
  }
  throw InternalError("a type without a name");
}

ncclRedOp_t nccl_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return ncclSum;
    case ReduceOp::max:
      return ncclMax;
    case ReduceOp::min:
      return ncclMin;
  }
  throw InternalError("a reduction without a name");
}

// The stream of a caller: the CPU's is the default stream of the GPU (src/core/device.h).
cudaStream_t stream_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle());
}

class NcclDeviceGroup final : public DeviceGroup {
 public:
  NcclDeviceGroup(Device device, NcclDeviceGroup* parent) : device_(device), parent_(parent) {
    select();
    // Without waiting for the default stream, and that not for this one.
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaEventCreateWithFlags(&order_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }

  // Failures have no one to tell: what could be told was, by `ready`.
  ~NcclDeviceGroup() override {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    if (finished_ && comm_)
      ncclCommDestroy(comm_);
    else
      abort();
    for (const Mark& m : marks_) cudaEventDestroy(m.event);
    for (cudaEvent_t event : free_) cudaEventDestroy(event);
    cudaEventDestroy(order_);
    cudaStreamDestroy(stream_);
  }

  void start(std::span<const std::byte> id, int rank, int size) {
    ncclUniqueId unique{};
    AMUR_CHECK(id.size() == sizeof(unique.internal), "an id of {} bytes", id.size());
    std::memcpy(unique.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.splitShare = 1;  // asked of the parent, not of the child
    check(ncclCommInitRankConfig(&comm_, size, unique, rank, &config), "ncclCommInitRankConfig");
  }

  bool ready() override {
    // A child's is set when the split is over; until then its parent knows of failures.
    const ncclComm_t comm = __atomic_load_n(&comm_, __ATOMIC_ACQUIRE);
    if (!comm) {
      if (parent_) parent_->ready();
      return false;
    }
    ncclResult_t state = ncclSuccess;
    check(ncclCommGetAsyncError(comm, &state), "ncclCommGetAsyncError", comm);
    check(state, "NCCL", comm);
    return state == ncclSuccess;
  }

  std::unique_ptr<DeviceGroup> split(int color, int key) override {
    auto child = std::make_unique<NcclDeviceGroup>(device_, this);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check(ncclCommSplit(comm_, color, key, &child->comm_, &config), "ncclCommSplit", comm_);
    return child;
  }

  Stream stream() const override { return Stream(device_, stream_); }

  void follow(Stream other) override {
    select();
    check(cudaEventRecord(order_, stream_of(other)), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_, order_, 0), "cudaStreamWaitEvent");
  }

  void precede(Stream other) override {
    select();
    check(cudaEventRecord(order_, stream_), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_of(other), order_, 0), "cudaStreamWaitEvent");
  }

  void enqueue(std::span<const DeviceOperation> operations) override {
    select();
    check(ncclGroupStart(), "ncclGroupStart", comm_);
    std::string failure;
    try {
      for (const DeviceOperation& operation : operations) call(operation);
    } catch (const CommError& error) {
      failure = error.what();
    }
    const ncclResult_t end = ncclGroupEnd();  // also where a call was refused
    if (!failure.empty()) throw CommError("{}", failure);
    check(end, "ncclGroupEnd", comm_);
  }

  uint64_t mark() override {
    select();
    cudaEvent_t event = nullptr;
    if (!free_.empty()) {
      event = free_.back();
      free_.pop_back();
    } else {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    }
    marks_.push_back({++newest_, event});
    check(cudaEventRecord(event, stream_), "cudaEventRecord");
    return newest_;
  }

  bool passed(uint64_t mark) override {
    select();
    while (!marks_.empty() && marks_.front().number <= mark) {
      const cudaError_t status = cudaEventQuery(marks_.front().event);
      if (status == cudaErrorNotReady) return false;
      check(status, "cudaEventQuery");
      free_.push_back(marks_.front().event);
      marks_.pop_front();
    }
    return true;
  }

  void finish() override {
    select();
    check(ncclCommFinalize(comm_), "ncclCommFinalize", comm_);
    finished_ = true;
  }

  void abort() noexcept override {
    if (comm_) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  struct Mark {
    uint64_t number;
    cudaEvent_t event;
  };

  void select() const { check(cudaSetDevice(device_.index), "cudaSetDevice"); }

  void call(const DeviceOperation& o) {
    using Kind = DeviceOperation::Kind;
    const auto count = static_cast<size_t>(o.count);
    const ncclDataType_t type = nccl_type(o.dtype);
    switch (o.kind) {
      case Kind::all_reduce:
        return check(ncclAllReduce(o.from, o.to, count, type, nccl_op(o.op), comm_, stream_),
                     "ncclAllReduce", comm_);
      case Kind::reduce:
        return check(ncclReduce(o.from, o.to, count, type, nccl_op(o.op), o.root, comm_, stream_),
                     "ncclReduce", comm_);
      case Kind::broadcast:
        return check(ncclBroadcast(o.from, o.to, count, type, o.root, comm_, stream_),
                     "ncclBroadcast", comm_);
      case Kind::all_gather:
        return check(ncclAllGather(o.from, o.to, count, type, comm_, stream_), "ncclAllGather",
                     comm_);
      case Kind::reduce_scatter:
        return check(ncclReduceScatter(o.from, o.to, count, type, nccl_op(o.op), comm_, stream_),
                     "ncclReduceScatter", comm_);
    }
  }

  const Device device_;
  NcclDeviceGroup* const parent_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t order_ = nullptr;  // between streams; used again as soon as a wait for it is queued
  std::deque<Mark> marks_;       // not known to be passed
  std::vector<cudaEvent_t> free_;
  uint64_t newest_ = 0;
  bool finished_ = false;
};

class NcclCollectives final : public DeviceCollectives {
 public:
  std::string library_text() const override { return "NCCL " + version_text(version()); }

  std::string problem() const override {
    if (version() >= kOldest) return "";
    return fmt::format("NCCL {} is too old: {} or newer is needed", version_text(version()),
                       kOldestText);
  }

  std::string gpu_identity(Device device) override {
    std::array<char, 64> text{};
    check(cudaDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), device.index),
          "cudaDeviceGetPCIBusId");
    return text.data();
  }

  std::vector<std::byte> unique_id() override {
    ncclUniqueId id{};
    check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    const auto* begin = reinterpret_cast<const std::byte*>(id.internal);
    return {begin, begin + sizeof(id.internal)};
  }

  std::unique_ptr<DeviceGroup> join(std::span<const std::byte> unique_id, int rank, int size,
                                    Device device) override {
    auto group = std::make_unique<NcclDeviceGroup>(device, nullptr);
    group->start(unique_id, rank, size);
    return group;
  }

 private:
  static int version() {
    int number = 0;
    check(ncclGetVersion(&number), "ncclGetVersion");
    return number;
  }
  static std::string version_text(int number) {
    return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
  }
};

}  // namespace
}  // namespace amur

extern "C" {
__attribute__((visibility("default"))) const char* amur_collectives_interface();
const char* amur_collectives_interface() {
  return AMUR_COLLECTIVES_INTERFACE;
}
__attribute__((visibility("default"))) amur::DeviceCollectives* amur_collectives();
amur::DeviceCollectives* amur_collectives() {
  static amur::NcclCollectives collectives;
  return &collectives;
}
}
