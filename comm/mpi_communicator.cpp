#include "comm/mpi_communicator.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <exception>
#include <thread>

#include "comm/mpi_check.h"
#include "comm/side_queue.h"
#include "comm/trace.h"

namespace amur {
namespace {

// All-reduces and broadcasts are cut into pieces of this size. Between hosts a heartbeat waits for
// the piece before it on the same connection; and libraries allocate temporaries as large as the
// vector they are given. It is also faster: 64 MiB over two busy cores took 160 ms in pieces, 270
// ms by one MPI_Allreduce and 460 ms by one MPI_Iallreduce (Open MPI 4.1.4).
constexpr size_t kPieceBytes = size_t{4} << 20;
// Tensors below this size travel together.
constexpr size_t kPackBelow = size_t{256} << 10;
constexpr int kReduceScatterTag = 7;

MPI_Datatype mpi_type(DType t) {
  switch (t) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u8:
      return MPI_UINT8_T;
    case DType::bf16:
      break;
  }
  throw InternalError(fmt::format("{} has no MPI type of its own", name_of(t)));
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return MPI_SUM;
    case ReduceOp::max:
      return MPI_MAX;
    case ReduceOp::min:
      return MPI_MIN;
  }
  return MPI_OP_NULL;
}

// Polls until all requests are done. Spins, then gives the core away, then naps: most polls without
// a nap, because it is polling that drives transfers over sockets, but before each one where
// another process has taken the core meanwhile. One that only yields would be run again and again
// beside it.
void wait_all(std::span<MPI_Request> requests, const Trace& trace) {
  using Clock = std::chrono::steady_clock;
  constexpr int kSpins = 100;
  constexpr auto kTaken = std::chrono::microseconds(100);
  constexpr auto kNapAfter = std::chrono::milliseconds(50);
  constexpr auto kNap = std::chrono::microseconds(50);
  int done = 0;
  bool taken = false;
  Clock::time_point start{};
  for (int spins = 0;; ++spins) {
    check_mpi(
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    if (done) return;
    trace.throw_if_interrupted();
    if (spins < kSpins) continue;
    const Clock::time_point now = Clock::now();
    if (spins == kSpins) start = now;
    if (now - start > kNapAfter && (taken || spins % 64 == 0)) {
      std::this_thread::sleep_for(kNap);
    } else {
      sched_yield();
      taken = taken || Clock::now() - now > kTaken;
    }
  }
}

void wait(MPI_Request& request, const Trace& trace) {
  wait_all({&request, 1}, trace);
}

bool in_host_memory(ConstTensorView tensor) {
  return tensor.device().kind == Device::Kind::cpu;
}

template <class From, class To>
void convert(const void* from, void* to, int64_t n) {
  const auto* f = static_cast<const From*>(from);
  auto* t = static_cast<To*>(to);
  for (int64_t i = 0; i < n; ++i) t[i] = static_cast<To>(static_cast<float>(f[i]));
}

// What travels for a tensor: bf16 is widened, so that sums are rounded once, at the end.
DType wire_type(DType t) {
  return t == DType::bf16 ? DType::f32 : t;
}

// Collects slices of tensors of one wire type and reduces them together, in host memory.
class Packer {
 public:
  Packer(std::vector<std::byte>& staging, MPI_Comm comm, ReduceOp op, Stream stream,
         const Trace& trace)
      : staging_(staging), comm_(comm), op_(op), stream_(stream), trace_(trace) {}

  void add(TensorView tensor) {
    const DType wire = wire_type(tensor.dtype());
    if (wire != wire_) flush();
    wire_ = wire;
    const auto capacity = static_cast<int64_t>(kPieceBytes / size_of(wire));
    const int64_t n = tensor.elements();
    for (int64_t at = 0; at < n;) {
      if (used_ == capacity) flush();
      const Slice slice{
          static_cast<std::byte*>(tensor.raw()) + static_cast<size_t>(at) * size_of(tensor.dtype()),
          tensor.dtype(), tensor.device(), used_, std::min(capacity - used_, n - at)};
      const size_t needed = static_cast<size_t>(used_ + slice.count) * size_of(wire);
      if (staging_.size() < needed) staging_.resize(needed);
      load(slice);
      slices_.push_back(slice);
      used_ += slice.count;
      at += slice.count;
    }
  }

  void flush() {
    if (used_ == 0) return;
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallreduce(MPI_IN_PLACE, staging_.data(), static_cast<int>(used_),
                             mpi_type(wire_), mpi_op(op_), comm_, &request),
              "MPI_Iallreduce");
    wait(request, trace_);
    for (const Slice& s : slices_) store(s);
    slices_.clear();
    used_ = 0;
  }

 private:
  struct Slice {
    std::byte* data;
    DType dtype;
    Device device;
    int64_t at;  // element in the staging buffer
    int64_t count;

    size_t bytes() const { return static_cast<size_t>(count) * size_of(dtype); }
  };

  // Between the tensor and its place in the buffer, where bf16 is widened.
  void load(const Slice& s) {
    if (s.dtype != DType::bf16)
      return copy(place(s.at), Device::cpu(), s.data, s.device, s.bytes(), stream_);
    narrow_.resize(s.bytes());
    copy(narrow_.data(), Device::cpu(), s.data, s.device, s.bytes(), stream_);
    convert<bf16, float>(narrow_.data(), place(s.at), s.count);
  }
  void store(const Slice& s) {
    if (s.dtype != DType::bf16)
      return copy(s.data, s.device, place(s.at), Device::cpu(), s.bytes(), stream_);
    narrow_.resize(s.bytes());
    convert<float, bf16>(place(s.at), narrow_.data(), s.count);
    copy(s.data, s.device, narrow_.data(), Device::cpu(), s.bytes(), stream_);
  }

  std::byte* place(int64_t element) {
    return staging_.data() + static_cast<size_t>(element) * size_of(wire_);
  }

  std::vector<std::byte>& staging_;
  MPI_Comm comm_;
  ReduceOp op_;
  Stream stream_;
  const Trace& trace_;
  std::vector<std::byte> narrow_;  // a slice of bf16
  DType wire_ = DType::f32;
  std::vector<Slice> slices_;
  int64_t used_ = 0;
};

}  // namespace

struct MpiCommunicator::Group {
  // Takes the handle over.
  explicit Group(MPI_Comm handle) : comm(handle) {
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  }
  MPI_Comm comm;
  int rank = 0, size = 0;
};

MpiCommunicator::MpiCommunicator(std::unique_ptr<Group> group, std::string name, Trace* trace)
    : Communicator(group->rank, group->size, std::move(name), trace), group_(std::move(group)) {}

MpiCommunicator::MpiCommunicator(const void* parent, int color, std::string name, Trace* trace)
    : MpiCommunicator(split_group(parent, color), std::move(name), trace) {}

MpiCommunicator::~MpiCommunicator() {
  side_.reset();
  // A failure here has no one to tell: the run is over.
  if (std::uncaught_exceptions() == 0) MPI_Comm_free(&group_->comm);
}

std::unique_ptr<MpiCommunicator::Group> MpiCommunicator::split_group(const void* parent,
                                                                     int color) {
  const MPI_Comm from = *static_cast<const MPI_Comm*>(parent);
  MPI_Comm handle = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(from, color, 0, &handle), "MPI_Comm_split");
  return std::make_unique<Group>(handle);
}

std::unique_ptr<MpiCommunicator> MpiCommunicator::split(const void* parent, int color,
                                                        std::string name, Trace* trace) {
  return std::unique_ptr<MpiCommunicator>(
      new MpiCommunicator(parent, color, std::move(name), trace));
}

std::unique_ptr<MpiCommunicator> MpiCommunicator::split_by_node(const void* parent,
                                                                std::string name, Trace* trace) {
  const MPI_Comm from = *static_cast<const MPI_Comm*>(parent);
  MPI_Comm handle = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(from, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &handle),
            "MPI_Comm_split_type");
  return std::unique_ptr<MpiCommunicator>(
      new MpiCommunicator(std::make_unique<Group>(handle), std::move(name), trace));
}

const void* MpiCommunicator::mpi_handle() const {
  return &group_->comm;
}

void MpiCommunicator::do_all_reduce(std::span<const TensorView> tensors, ReduceOp op,
                                    Stream stream) {
  Packer packer(staging_, group_->comm, op, stream, trace());
  for (const TensorView& t : tensors) {
    if (!in_host_memory(t) || t.dtype() == DType::bf16 || t.bytes() < kPackBelow)
      packer.add(t);
    else
      host_all_reduce(t, op);
  }
  packer.flush();
}

void MpiCommunicator::host_all_reduce(TensorView tensor, ReduceOp op) {
  const size_t width = size_of(tensor.dtype());
  auto* data = static_cast<std::byte*>(tensor.raw());
  const auto piece = static_cast<int64_t>(kPieceBytes / width);
  for (int64_t at = 0; at < tensor.elements(); at += piece) {
    const int count = static_cast<int>(std::min(piece, tensor.elements() - at));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallreduce(MPI_IN_PLACE, data + static_cast<size_t>(at) * width, count,
                             mpi_type(tensor.dtype()), mpi_op(op), group_->comm, &request),
              "MPI_Iallreduce");
    wait(request, trace());
  }
}

void MpiCommunicator::do_all_gather(ConstTensorView shard, TensorView full,
                                    std::span<const int64_t> counts, Stream stream) {
  if (in_host_memory(full)) return host_all_gather(shard, full, counts);
  Tensor host_shard(shard.shape(), shard.dtype()), host_full(full.shape(), full.dtype());
  copy(host_shard, shard, stream);
  host_all_gather(host_shard, host_full, counts);
  copy(full, host_full, stream);
}

void MpiCommunicator::host_all_gather(ConstTensorView shard, TensorView full,
                                      std::span<const int64_t> counts) {
  if (full.bytes() == 0) return;
  // A row is one element of a type of its own, so that counts and displacements fit an int however
  // many bytes there are.
  const size_t row_bytes = static_cast<size_t>(full.columns()) * size_of(full.dtype());
  AMUR_CHECK(full.rows() <= INT_MAX && row_bytes <= size_t{INT_MAX},
             "all_gather of {} rows of {} bytes", full.rows(), row_bytes);
  std::vector<int> rows(counts.size()), first(counts.size());
  for (size_t r = 0; r < counts.size(); ++r) {
    rows[r] = static_cast<int>(counts[r]);
    if (r > 0) first[r] = first[r - 1] + rows[r - 1];
  }
  const auto me = static_cast<size_t>(rank());
  const bool in_place = shard.raw() == full.slice(first[me], rows[me]).raw();
  MPI_Datatype row = MPI_DATATYPE_NULL;
  check_mpi(MPI_Type_contiguous(static_cast<int>(row_bytes), MPI_BYTE, &row),
            "MPI_Type_contiguous");
  check_mpi(MPI_Type_commit(&row), "MPI_Type_commit");
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Iallgatherv(in_place ? MPI_IN_PLACE : shard.raw(), rows[me], row, full.raw(),
                                   rows.data(), first.data(), row, group_->comm, &request);
  MPI_Type_free(&row);  // lives on until the operation is done
  check_mpi(code, "MPI_Iallgatherv");
  wait(request, trace());
}

void MpiCommunicator::do_reduce_scatter(TensorView full, TensorView shard,
                                        std::span<const int64_t> counts, Stream stream) {
  if (!in_host_memory(full)) {
    Tensor host_full(full.shape(), full.dtype()), host_shard(shard.shape(), shard.dtype());
    copy(host_full, full, stream);
    do_reduce_scatter(host_full, host_shard, counts, stream);
    return copy(shard, host_shard, stream);
  }
  auto typed = [&]<class T>() {
    reduce_scatter_typed(static_cast<const T*>(full.raw()), static_cast<T*>(shard.raw()), counts,
                         full.columns());
  };
  switch (full.dtype()) {
    case DType::i32:
      return typed.template operator()<int32_t>();
    case DType::i64:
      return typed.template operator()<int64_t>();
    default:
      dispatch_float(full.dtype(), "reduce_scatter", typed);
  }
}

// Every rank sends each peer its block directly and adds what it receives in rank order. MPI's own
// operation would hold temporaries of the size of `full`, and in Open MPI's non-blocking form
// reduces everything on one rank first.
template <class T>
void MpiCommunicator::reduce_scatter_typed(const T* full, T* shard, std::span<const int64_t> counts,
                                           int64_t columns) {
  using Sum = std::conditional_t<std::is_integral_v<T>, T, AccumulateType<T>>;
  const int n = size(), me = rank();
  const auto at = [](int r) { return static_cast<size_t>(r); };
  std::vector<int64_t> first(at(n) + 1, 0);  // elements
  int64_t longest = 0;
  for (int r = 0; r < n; ++r) {
    first[at(r) + 1] = first[at(r)] + counts[at(r)] * columns;
    longest = std::max(longest, counts[at(r)] * columns);
  }
  const auto piece =
      static_cast<int64_t>(std::max(size_t{64} << 10, kPieceBytes / at(n)) / sizeof(T));
  const int64_t mine = counts[at(me)] * columns;
  const int64_t room = std::min(piece, mine);
  std::vector<T> received(at(n) * static_cast<size_t>(room));  // [n, room]
  std::vector<Sum> total(static_cast<size_t>(room));
  std::vector<MPI_Request> requests;
  for (int64_t begin = 0; begin < longest; begin += piece) {
    const auto count_of = [&](int r) {
      return std::clamp(counts[at(r)] * columns - begin, int64_t{0}, piece);
    };
    requests.clear();
    for (int step = 1; step < n; ++step) {
      const int from = (me + n - step) % n, to = (me + step) % n;
      if (const int64_t count = count_of(me); count > 0)
        check_mpi(MPI_Irecv(received.data() + from * room, static_cast<int>(count * sizeof(T)),
                            MPI_BYTE, from, kReduceScatterTag, group_->comm,
                            &requests.emplace_back(MPI_REQUEST_NULL)),
                  "MPI_Irecv");
      if (const int64_t count = count_of(to); count > 0)
        check_mpi(MPI_Isend(full + first[at(to)] + begin, static_cast<int>(count * sizeof(T)),
                            MPI_BYTE, to, kReduceScatterTag, group_->comm,
                            &requests.emplace_back(MPI_REQUEST_NULL)),
                  "MPI_Isend");
    }
    wait_all(requests, trace());
    const int64_t count = count_of(me);
    for (int r = 0; r < n; ++r) {
      const T* part = r == me ? full + first[at(me)] + begin : received.data() + r * room;
      if (r == 0)
        for (int64_t i = 0; i < count; ++i)
          total[static_cast<size_t>(i)] = static_cast<Sum>(part[i]);
      else
        for (int64_t i = 0; i < count; ++i)
          total[static_cast<size_t>(i)] += static_cast<Sum>(part[i]);
    }
    for (int64_t i = 0; i < count; ++i)
      shard[begin + i] = static_cast<T>(total[static_cast<size_t>(i)]);
  }
}

void MpiCommunicator::do_broadcast(std::span<const TensorView> tensors, int root, Stream stream) {
  for (const TensorView& t : tensors) {
    if (in_host_memory(t)) {
      host_broadcast(t, root);
      continue;
    }
    Tensor host(t.shape(), t.dtype());
    if (rank() == root) copy(host, t, stream);
    host_broadcast(host, root);
    if (rank() != root) copy(t, host, stream);
  }
}

void MpiCommunicator::host_broadcast(TensorView tensor, int root) {
  auto* data = static_cast<std::byte*>(tensor.raw());
  for (size_t at = 0; at < tensor.bytes(); at += kPieceBytes) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(data + at, static_cast<int>(std::min(kPieceBytes, tensor.bytes() - at)),
                         MPI_BYTE, root, group_->comm, &request),
              "MPI_Ibcast");
    wait(request, trace());
  }
}

void MpiCommunicator::do_synchronize(Stream stream) {
  if (side_ && stream.handle() == side_.get())
    side_->wait();
  else
    stream.synchronize();
}

Stream MpiCommunicator::do_side_stream(const SideStreamOptions& options) {
  if (!side_) side_ = std::make_unique<SideQueue>(&group_->comm, options, trace());
  AMUR_CHECK(side_->options() == options, "the side stream of {} has other options", name());
  return Stream(Device::cpu(), side_.get());
}

void MpiCommunicator::do_side_sum(std::span<const TensorView> tensors,
                                  std::span<const TensorView> residuals, uint64_t ticket) {
  AMUR_CHECK(side_, "the side stream of {} is not open", name());
  for (const TensorView& t : tensors) {
    AMUR_CHECK(in_host_memory(t), "a tensor on {} for the side stream", t.device().text());
    AMUR_CHECK(
        t.dtype() == tensors[0].dtype() && (t.dtype() == DType::f32 || t.dtype() == DType::f64),
        "the side stream takes f32 or f64, not {}", name_of(t.dtype()));
  }
  side_->submit(tensors, residuals, ticket);
}

SideTraffic MpiCommunicator::side_traffic() const {
  return side_ ? side_->traffic() : SideTraffic{};
}

void MpiCommunicator::host_barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(group_->comm, &request), "MPI_Ibarrier");
  wait(request, trace());
}

}  // namespace amur
