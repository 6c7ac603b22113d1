// What passes for NCCL and for CUDA's runtime where there is no GPU: the functions that
// comm/nccl_backend.cpp calls, linked with it into a library of the tests. The ranks are those of
// MPI, the memory is that of fake_gpu.cpp or of emulated GPUs, reached through their back ends
// alone. What one must not do with NCCL is an error here: calls while a non-blocking communicator
// is in progress, different calls on different ranks, sums in bf16 being exact (they are rounded at
// every hop), averages.
//
// A stream does its work when it is looked at: ncclCommGetAsyncError, cudaEventQuery. The default
// stream is the host, which waits when it is told to.
//
// NCCL_STAND_IN in the environment, read at every call: "fail" (the call is lost, ncclRemoteError),
// "stall" (the stream stops there), "stall-init" (communicators never get ready), "fail-split" (a
// split fails, and writes where the child was to go only when the parent is aborted), "one-gpu"
// (that all ranks use).
#include "tests/support/nccl_stand_in.h"

#include <dlfcn.h>
#include <mpi.h>
#include <nccl.h>
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "src/core/device_backend.h"
#include "src/core/dtype.h"
#include "src/core/hash.h"

namespace {

using Bytes = std::vector<std::byte>;

enum class Kind : int { all_reduce, reduce, broadcast, all_gather, reduce_scatter };

struct Operation {
  Kind kind;
  const void* from;
  void* to;
  size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int root;
};

struct Header {
  uint64_t hash = 0;
  int64_t bytes = 0;
};

// What a stream has to do: a group of operations, or to pass a point, or to wait for one.
struct Work {
  ncclComm_t comm = nullptr;
  std::vector<Operation> operations;
  std::shared_ptr<bool> passes, awaits;
  bool stalled = false;

  int stage = 0;
  Header mine;
  std::vector<Header> headers;
  Bytes sent, received;
  std::vector<int> counts, first;
  MPI_Request request = MPI_REQUEST_NULL;
};

std::list<cudaStream_t> streams;
std::vector<ncclComm_t> calling;  // in ncclGroupStart .. ncclGroupEnd
std::vector<Operation> called;
cudaStream_t called_stream = nullptr;
NcclStandInCounts counts;

bool told(const char* what) {
  const char* text = std::getenv("NCCL_STAND_IN");
  return text && std::strcmp(text, what) == 0;
}

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

amur::DeviceBackend& gpu() {
  static amur::DeviceBackend* const found = [] {
    void* library = nullptr;
    for (const char* path : {AMUR_FAKE_GPU, AMUR_EMULATED_GPU})
      if (!library) library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) std::abort();
    return reinterpret_cast<amur::BackendFunction*>(dlsym(library, amur::kBackendSymbol))();
  }();
  return *found;
}

int device = 0;
amur::Device here() {
  return amur::Device::cuda(device);
}

template <class T>
void accumulate(std::byte* to, const std::byte* from, size_t count, ncclRedOp_t op) {
  for (size_t i = 0; i < count; ++i) {
    T a, b;
    std::memcpy(&a, to + i * sizeof(T), sizeof(T));
    std::memcpy(&b, from + i * sizeof(T), sizeof(T));
    if constexpr (std::is_same_v<T, amur::bf16>) {
      const float x = static_cast<float>(a), y = static_cast<float>(b);
      a = T(op == ncclSum ? x + y : op == ncclMax ? std::max(x, y) : std::min(x, y));
    } else {
      a = op == ncclSum ? static_cast<T>(a + b) : op == ncclMax ? std::max(a, b) : std::min(a, b);
    }
    std::memcpy(to + i * sizeof(T), &a, sizeof(T));
  }
}

struct Type {
  size_t size;
  void (*accumulate)(std::byte* to, const std::byte* from, size_t count, ncclRedOp_t op);
};
Type type_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return {1, accumulate<uint8_t>};
    case ncclInt32:
      return {4, accumulate<int32_t>};
    case ncclInt64:
      return {8, accumulate<int64_t>};
    case ncclFloat32:
      return {4, accumulate<float>};
    case ncclFloat64:
      return {8, accumulate<double>};
    case ncclBfloat16:
      return {2, accumulate<amur::bf16>};
    default:
      std::abort();
  }
}

}  // namespace

struct ncclComm {
  MPI_Comm mpi = MPI_COMM_NULL;
  int rank = 0, size = 0;
  int looks = 2;  // of ncclCommGetAsyncError until it is no longer in progress
  ncclComm_t child = nullptr, *child_goes_to = nullptr;  // by then
  bool finalized = false;
  ncclResult_t error = ncclSuccess;
  std::string text;

  ncclResult_t fail(ncclResult_t what, const std::string& why) {
    if (error == ncclSuccess) text = why;
    return error = what;
  }
  // What every call but a look asks first.
  ncclResult_t at_rest(const char* call) {
    if (error != ncclSuccess) return error;
    return looks == 0 ? ncclSuccess
                      : fail(ncclInvalidUsage, std::string(call) + " while in progress");
  }
};
struct CUstream_st {
  std::deque<Work> work;
  ncclComm_t comm = nullptr;  // of the newest operations
};
struct CUevent_st {
  std::shared_ptr<bool> point = std::make_shared<bool>(true);
};

namespace {

// What this rank sends of an operation.
size_t bytes_sent(const Operation& o, const ncclComm& comm, int rank) {
  const size_t one = o.count * type_of(o.type).size;
  if (o.kind == Kind::broadcast) return rank == o.root ? one : 0;
  return o.kind == Kind::reduce_scatter ? one * static_cast<size_t>(comm.size) : one;
}

void begin(Work& w) {
  const ncclComm& comm = *w.comm;
  for (const Operation& o : w.operations) {
    for (const uint64_t part : {static_cast<uint64_t>(o.kind), static_cast<uint64_t>(o.count),
                                static_cast<uint64_t>(o.type), static_cast<uint64_t>(o.op),
                                static_cast<uint64_t>(o.root)})
      w.mine.hash = amur::mix64(w.mine.hash ^ part) + 1;
    const size_t at = w.sent.size(), bytes = bytes_sent(o, comm, comm.rank);
    w.sent.resize(at + bytes);
    if (bytes > 0) gpu().copy(w.sent.data() + at, amur::Device::cpu(), o.from, here(), bytes, {});
  }
  w.mine.bytes = static_cast<int64_t>(w.sent.size());
  w.headers.resize(static_cast<size_t>(comm.size));
  MPI_Iallgather(&w.mine, sizeof(Header), MPI_BYTE, w.headers.data(), sizeof(Header), MPI_BYTE,
                 comm.mpi, &w.request);
}

bool exchange(Work& w) {
  int total = 0;
  for (size_t r = 0; r < w.headers.size(); ++r) {
    if (w.headers[r].hash != w.mine.hash) {
      w.comm->fail(ncclInvalidUsage, "rank " + std::to_string(r) + " called something else");
      return false;
    }
    w.first.push_back(total);
    w.counts.push_back(static_cast<int>(w.headers[r].bytes));
    total += w.counts.back();
  }
  w.received.resize(static_cast<size_t>(total));
  MPI_Iallgatherv(w.sent.data(), static_cast<int>(w.sent.size()), MPI_BYTE, w.received.data(),
                  w.counts.data(), w.first.data(), MPI_BYTE, w.comm->mpi, &w.request);
  return true;
}

void conclude(Work& w) {
  const ncclComm& comm = *w.comm;
  std::vector<size_t> at(w.first.begin(), w.first.end());
  for (const Operation& o : w.operations) {
    const size_t one = o.count * type_of(o.type).size;
    const bool reduces = o.kind != Kind::broadcast && o.kind != Kind::all_gather;
    Bytes result;
    for (int r = 0; r < comm.size; ++r) {
      const size_t bytes = bytes_sent(o, comm, r);
      const std::byte* part = w.received.data() + at[static_cast<size_t>(r)];
      at[static_cast<size_t>(r)] += bytes;
      if (o.kind == Kind::reduce_scatter) part += one * static_cast<size_t>(comm.rank);
      if (!reduces || r == 0)
        result.insert(result.end(), part, part + (reduces ? one : bytes));
      else
        type_of(o.type).accumulate(result.data(), part, o.count, o.op);
    }
    if (o.kind != Kind::reduce || comm.rank == o.root)
      gpu().copy(o.to, here(), result.data(), amur::Device::cpu(), result.size(), {});
  }
}

// True when it is done.
bool advance(Work& w) {
  if (w.awaits) return *w.awaits;
  if (w.passes) return *w.passes = true;
  if (w.stalled || w.comm->error != ncclSuccess) return false;
  if (w.stage == 0) {
    begin(w);
    w.stage = 1;
  }
  int done = 0;
  MPI_Test(&w.request, &done, MPI_STATUS_IGNORE);
  if (!done) return false;
  if (w.stage == 1) {
    if (exchange(w)) w.stage = 2;
    return false;
  }
  conclude(w);
  return true;
}

void look_at_streams() {
  for (cudaStream_t stream : streams)
    while (!stream->work.empty() && advance(stream->work.front())) stream->work.pop_front();
  sched_yield();
}

// Nothing that is waited for will come any more.
bool stuck() {
  for (cudaStream_t stream : streams)
    if (!stream->work.empty() && stream->work.front().comm &&
        (stream->work.front().stalled || stream->work.front().comm->error != ncclSuccess))
      return true;
  return false;
}

bool has_work(ncclComm_t comm) {
  for (cudaStream_t stream : streams)
    for (const Work& w : stream->work)
      if (w.comm == comm) return true;
  return false;
}

ncclResult_t call(const Operation& operation, ncclComm_t comm, cudaStream_t stream) {
  if (operation.op == ncclAvg) return comm->fail(ncclInvalidArgument, "an average");
  if (operation.count == 0) return comm->fail(ncclInvalidArgument, "nothing to do");
  if (const ncclResult_t state = comm->at_rest("a collective"); state != ncclSuccess) return state;
  calling.push_back(comm);
  called.push_back(operation);
  called_stream = stream;
  return ncclSuccess;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) NcclStandInCounts nccl_stand_in_counts() {
  return counts;
}
__attribute__((visibility("default"))) void nccl_stand_in_drain(void* stream) {
  while (!static_cast<cudaStream_t>(stream)->work.empty() && !stuck()) look_at_streams();
}

const char* cudaGetErrorString(cudaError_t) {
  return "an error of the stand-in";
}
const char* cudaGetErrorName(cudaError_t) {
  return "cudaErrorOfTheStandIn";
}
cudaError_t cudaSetDevice(int index) {
  device = index;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
  std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0",
                told("one-gpu") ? 0u : static_cast<unsigned>(world_rank()));
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  streams.push_back(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  streams.remove(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  ++counts.events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  --counts.events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->point = std::make_shared<bool>(stream == nullptr);
  if (!stream) return cudaSuccess;
  // Of a communicator in progress nothing may be in the stream yet.
  if (stream->comm) stream->comm->at_rest("cudaEventRecord");
  stream->work.emplace_back().passes = event->point;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  look_at_streams();
  return *event->point ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stream) {
    stream->work.emplace_back().awaits = event->point;
    return cudaSuccess;
  }
  while (!*event->point && !stuck()) look_at_streams();
  return cudaSuccess;
}

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION(2, 28, 9);
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::snprintf(id->internal, sizeof(id->internal), "stand-in %d", ++counts.ids);
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError    ? "remote process exited or there was a network error"
         : result == ncclInvalidUsage ? "invalid usage"
                                      : "an error";
}
const char* ncclGetLastError(ncclComm_t comm) {
  return comm ? comm->text.c_str() : "";
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = new ncclComm;
  ++counts.groups;
  ncclComm& c = **comm;
  if (config->blocking != 0) return c.fail(ncclInvalidUsage, "a blocking communicator");
  if (told("stall-init")) {
    c.looks = 1 << 30;
    return ncclInProgress;
  }
  MPI_Comm_dup(MPI_COMM_WORLD, &c.mpi);
  MPI_Comm_rank(c.mpi, &c.rank);
  MPI_Comm_size(c.mpi, &c.size);
  const auto hash = static_cast<int64_t>(amur::fnv1a(id.internal));
  int64_t pair[2] = {hash, ~hash};
  MPI_Allreduce(MPI_IN_PLACE, pair, 2, MPI_INT64_T, MPI_MAX, c.mpi);
  if (pair[0] != ~pair[1] || c.rank != rank || c.size != ranks)
    return c.fail(ncclInvalidArgument, "ids, ranks or sizes differ");
  return ncclInProgress;
}
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* child, ncclConfig_t*) {
  if (const ncclResult_t state = comm->at_rest("ncclCommSplit"); state != ncclSuccess) return state;
  comm->child_goes_to = child;
  if (told("fail-split")) {
    comm->fail(ncclRemoteError, "the stand-in was told to fail");
    return ncclInProgress;
  }
  ncclComm_t made = new ncclComm;
  ++counts.groups;
  MPI_Comm_split(comm->mpi, color, key, &made->mpi);
  MPI_Comm_rank(made->mpi, &made->rank);
  MPI_Comm_size(made->mpi, &made->size);
  *child = nullptr;
  comm->child = made;
  comm->looks = 2;
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  look_at_streams();
  if (comm->looks > 0 && --comm->looks == 0 && comm->child_goes_to)
    *std::exchange(comm->child_goes_to, nullptr) = comm->child;
  *state = comm->error;
  if (comm->error == ncclSuccess && (comm->looks > 0 || (comm->finalized && has_work(comm))))
    *state = ncclInProgress;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (const ncclResult_t state = comm->at_rest("ncclCommFinalize"); state != ncclSuccess)
    return state;
  comm->finalized = true;
  comm->looks = 2;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->mpi != MPI_COMM_NULL) MPI_Comm_free(&comm->mpi);
  delete comm;
  ++counts.destroyed;
  return ncclSuccess;
}
// The MPI_Comm stays: freeing it takes all ranks.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++counts.aborted;
  for (cudaStream_t stream : streams) {
    if (stream->comm == comm) stream->comm = nullptr;
    std::erase_if(stream->work, [&](const Work& w) { return w.comm == comm; });
  }
  if (comm->child_goes_to) *comm->child_goes_to = nullptr;
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclGroupStart() {
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (called.empty()) return ncclSuccess;
  ncclComm_t comm = calling.front();
  ++counts.calls;
  counts.operations += static_cast<int>(called.size());
  Work work;
  work.comm = comm;
  work.operations = std::exchange(called, {});
  calling.clear();
  work.stalled = told("stall");
  if (told("fail")) comm->fail(ncclRemoteError, "the stand-in was told to fail");
  called_stream->work.push_back(std::move(work));
  called_stream->comm = comm;
  comm->looks = 2;
  return ncclInProgress;
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return call({Kind::all_reduce, from, to, count, type, op, 0}, comm, stream);
}
ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return call({Kind::reduce, from, to, count, type, op, root}, comm, stream);
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return call({Kind::broadcast, from, to, count, type, ncclSum, root}, comm, stream);
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return call({Kind::all_gather, from, to, count, type, ncclSum, 0}, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return call({Kind::reduce_scatter, from, to, count, type, op, 0}, comm, stream);
}
}
