#include "comm/group_sum.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "comm/mpi_check.h"
#include "comm/trace.h"
#include "src/core/error.h"

namespace amur {
namespace {

constexpr size_t kSegmentBytes = size_t{512} << 10;
// The stages of a segment, and how many segments later than the first a rank comes to them: it
// rarely waits for one that is a little behind, which on a shared core would cost a turn of the
// scheduler.
constexpr uint64_t kAddBehind = 2, kSendBehind = 4;
// Segments under way: as many as this much memory of a machine holds, within bounds. The more there
// are, the fewer turns of the scheduler a link has to wait for.
constexpr size_t kWindowBytes = size_t{64} << 20;
constexpr int kFewest = 8, kMost = 32;
constexpr size_t kLine = 64;  // bytes that two ranks must not share

// How far a rank has come, as numbers of segments; in memory that all ranks of the machine see.
struct alignas(kLine) Progress {
  std::atomic<uint64_t> copied{0};  // into its slot
  std::atomic<uint64_t> added{0};   // its slice
  std::atomic<uint64_t> taken{0};   // copied out
  std::atomic<uint64_t> summed{0};  // over all machines; of the first rank
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Calls f(data, at, count) for the parts of elements begin..begin+count-1 of the list, as one row.
template <class T, class F>
void each_part(std::span<const TensorView> tensors, int64_t begin, int64_t count, F&& f) {
  int64_t first = 0;  // of the tensor
  for (const TensorView& t : tensors) {
    const int64_t from = std::max(begin, first), to = std::min(begin + count, first + t.elements());
    if (from < to) f(t.as<T>() + (from - first), from - begin, to - from);
    first += t.elements();
    if (first >= begin + count) return;
  }
}

// Part r of n elements in `parts`.
struct Part {
  int64_t first, count;
};
Part part_of(int64_t n, int64_t parts, int64_t r) {
  const int64_t block = (n + parts - 1) / parts;
  const int64_t first = std::min(n, r * block);
  return {first, std::min(n, first + block) - first};
}

template <class T>
void add(T* __restrict to, const T* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}
void add(float* __restrict to, const bf16* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += static_cast<float>(from[i]);
}

// One segment on its way between the first ranks of the machines.
class Exchange {
 public:
  Exchange(MPI_Comm comm, int tag, std::atomic<int64_t>& bytes_sent)
      : comm_(comm), tag_(tag), bytes_sent_(bytes_sent) {
    check_mpi(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
  }

  template <class T>
  void start(T* data, float* residual, int64_t count) {
    data_ = data;
    residual_ = residual;
    count_ = count;
    is_double_ = std::is_same_v<T, double>;
    state_ = State::scatter;
    if (residual) {
      travelling_.resize(count * sizeof(bf16));
      auto* rounded = reinterpret_cast<bf16*>(travelling_.data());
      const Part own = part(rank_);
      for (int64_t i = 0; i < count; ++i) rounded[i] = bf16(static_cast<float>(data[i]));
      for (int64_t i = 0; i < count; ++i)
        residual[i] = static_cast<float>(data[i]) - static_cast<float>(rounded[i]);
      // The own part is not sent.
      std::fill_n(residual + own.first, own.count, 0.0f);
    }
    const auto own = static_cast<size_t>(part(rank_).count);
    received_.resize(own * width() * static_cast<size_t>(size_));
    each_peer([&](int from, int to) {
      receive(received_.data() + own * width() * static_cast<size_t>(from), part(rank_), from, 0);
      send(wire() + static_cast<size_t>(part(to).first) * width(), part(to), to, 0);
    });
  }

  // True when the sum is in place.
  bool test() {
    if (state_ == State::idle) return true;
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                          MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (!done) return false;
    requests_.clear();
    if (state_ == State::scatter) {
      is_double_ ? add_own<double>() : add_own<float>();
      state_ = State::gather;
      const Part own = part(rank_);
      each_peer([&](int from, int to) {
        receive(wire() + static_cast<size_t>(part(from).first) * width(), part(from), from, 1);
        send(wire() + static_cast<size_t>(own.first) * width(), own, to, 1);
      });
      return test();
    }
    if (residual_) {
      const auto* rounded = reinterpret_cast<const bf16*>(travelling_.data());
      auto* data = static_cast<float*>(data_);
      for (int64_t i = 0; i < count_; ++i) data[i] = static_cast<float>(rounded[i]);
    }
    state_ = State::idle;
    return true;
  }

 private:
  enum class State : uint8_t { idle, scatter, gather };

  Part part(int r) const { return part_of(count_, size_, r); }
  size_t width() const {
    return residual_ ? sizeof(bf16) : is_double_ ? sizeof(double) : sizeof(float);
  }
  // What travels: the segment itself, or its rounded copy.
  std::byte* wire() { return residual_ ? travelling_.data() : static_cast<std::byte*>(data_); }

  template <class F>
  void each_peer(F&& f) {
    for (int step = 1; step < size_; ++step)
      f((rank_ + size_ - step) % size_, (rank_ + step) % size_);
  }
  void receive(std::byte* to, Part p, int from, int phase) {
    if (p.count == 0) return;
    check_mpi(MPI_Irecv(to, static_cast<int>(static_cast<size_t>(p.count) * width()), MPI_BYTE,
                        from, tag_ + phase, comm_, &requests_.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Irecv");
  }
  void send(const std::byte* from, Part p, int to, int phase) {
    if (p.count == 0) return;
    const auto bytes = static_cast<size_t>(p.count) * width();
    check_mpi(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, to, tag_ + phase, comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Isend");
    bytes_sent_ += static_cast<int64_t>(bytes);
  }

  // Adds what the others sent to the own part, in rank order.
  template <class T>
  void add_own() {
    const Part own = part(rank_);
    auto* data = static_cast<T*>(data_) + own.first;
    std::vector<T> total(static_cast<size_t>(own.count), T{0});
    for (int r = 0; r < size_; ++r) {
      const std::byte* theirs =
          received_.data() + static_cast<size_t>(own.count) * width() * static_cast<size_t>(r);
      if (r == rank_) {
        add(total.data(), data, own.count);
      } else if constexpr (std::is_same_v<T, float>) {
        if (residual_)
          add(total.data(), reinterpret_cast<const bf16*>(theirs), own.count);
        else
          add(total.data(), reinterpret_cast<const T*>(theirs), own.count);
      } else {
        add(total.data(), reinterpret_cast<const T*>(theirs), own.count);
      }
    }
    if (!residual_) {
      std::copy(total.begin(), total.end(), data);
      return;
    }
    auto* rounded = reinterpret_cast<bf16*>(travelling_.data()) + own.first;
    for (int64_t i = 0; i < own.count; ++i) {
      const auto exact = static_cast<float>(total[static_cast<size_t>(i)]);
      rounded[i] = bf16(exact);
      residual_[own.first + i] = exact - static_cast<float>(rounded[i]);
    }
  }

  MPI_Comm comm_;
  int tag_, rank_ = 0, size_ = 1;
  std::atomic<int64_t>& bytes_sent_;
  State state_ = State::idle;
  void* data_ = nullptr;
  float* residual_ = nullptr;
  bool is_double_ = false;
  int64_t count_ = 0;
  std::vector<MPI_Request> requests_;
  std::vector<std::byte> received_;    // [size, own part]
  std::vector<std::byte> travelling_;  // [count] bf16
};

}  // namespace

struct GroupSum::State {
  State(Trace& rank_trace, const std::atomic<bool>& stopped) : trace(rank_trace), stop(stopped) {}

  Trace& trace;
  const std::atomic<bool>& stop;
  MPI_Comm node = MPI_COMM_NULL, leaders = MPI_COMM_NULL;  // leaders: first ranks of machines only
  int rank = 0, size = 1;                                  // on this machine
  int machines = 1;
  uint64_t buffers = kFewest;  // segments under way, the same on all ranks
  MPI_Win window = MPI_WIN_NULL;
  Progress* progress = nullptr;               // [size]
  std::byte* slots = nullptr;                 // [size, buffers, kSegmentBytes]
  std::vector<Exchange> exchanges;            // one a buffer; first rank of a machine
  std::vector<std::vector<float>> residuals;  // one a buffer
  uint64_t segments = 0;                      // begun so far
  std::atomic<int64_t> bytes_sent{0};

  bool first() const { return rank == 0; }
  Progress& of(int r) const { return progress[r]; }
  std::byte* slot(int r, uint64_t segment) const {
    return slots + (static_cast<size_t>(r) * buffers + segment % buffers) * kSegmentBytes;
  }

  void open(MPI_Comm parent, bool through_nodes);
  template <class Condition>
  void wait_until(Condition&& condition);
  void wait_for_all(std::atomic<uint64_t> Progress::*what, uint64_t segment);
  template <class T>
  void bring(uint64_t segment, std::span<const TensorView> tensors, int64_t begin, int64_t count);
  template <class T>
  void add_slice(uint64_t segment, int64_t count);
  template <class T>
  void send(uint64_t segment, int64_t count, bool rounded);
  template <class T>
  void take(uint64_t segment, std::span<const TensorView> tensors,
            std::span<const TensorView> residual_tensors, int64_t begin, int64_t count);
  template <class T>
  void sum(std::span<const TensorView> tensors, std::span<const TensorView> residual_tensors);
};

void GroupSum::State::open(MPI_Comm parent, bool through_nodes) {
  int group_rank = 0;
  check_mpi(MPI_Comm_rank(parent, &group_rank), "MPI_Comm_rank");
  if (through_nodes)
    check_mpi(MPI_Comm_split_type(parent, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
  else
    check_mpi(MPI_Comm_split(parent, group_rank, 0, &node), "MPI_Comm_split");
  check_mpi(MPI_Comm_rank(node, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &size), "MPI_Comm_size");
  check_mpi(MPI_Comm_split(parent, first() ? 0 : MPI_UNDEFINED, 0, &leaders), "MPI_Comm_split");

  const auto ranks = static_cast<size_t>(size);
  int least =
      static_cast<int>(std::clamp<size_t>(kWindowBytes / (ranks * kSegmentBytes), kFewest, kMost));
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &least, 1, MPI_INT, MPI_MIN, parent), "MPI_Allreduce");
  buffers = static_cast<uint64_t>(least);
  residuals.resize(buffers);
  const size_t bytes = kLine + ranks * (sizeof(Progress) + buffers * kSegmentBytes);
  void* base = nullptr;
  check_mpi(MPI_Win_allocate_shared(static_cast<MPI_Aint>(first() ? bytes : 0), 1, MPI_INFO_NULL,
                                    node, &base, &window),
            "MPI_Win_allocate_shared");
  MPI_Aint given = 0;
  int unit = 1;
  check_mpi(MPI_Win_shared_query(window, 0, &given, &unit, &base), "MPI_Win_shared_query");
  size_t room = bytes;
  progress = static_cast<Progress*>(std::align(kLine, bytes - kLine, base, room));
  slots = reinterpret_cast<std::byte*>(progress + size);
  new (progress + rank) Progress;
  if (first()) {
    check_mpi(MPI_Comm_set_errhandler(leaders, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_size(leaders, &machines), "MPI_Comm_size");
    for (uint64_t b = 0; b < buffers; ++b)
      exchanges.emplace_back(leaders, static_cast<int>(2 * b), bytes_sent);
  }
  check_mpi(MPI_Barrier(parent), "MPI_Barrier");
}

// Polling drives the exchanges. Gives the core away at first, then naps: whoever computes should
// have it.
template <class Condition>
void GroupSum::State::wait_until(Condition&& condition) {
  constexpr int kYields = 100;
  constexpr auto kNap = std::chrono::microseconds(20);
  for (int polls = 0;; ++polls) {
    for (Exchange& e : exchanges) e.test();
    if (condition()) return;
    trace.throw_if_interrupted();
    if (stop.load(std::memory_order_relaxed)) throw CommError("the group is being closed");
    if (polls < kYields)
      sched_yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

void GroupSum::State::wait_for_all(std::atomic<uint64_t> Progress::*what, uint64_t segment) {
  wait_until([&] {
    for (int r = 0; r < size; ++r)
      if ((of(r).*what).load(std::memory_order_acquire) < segment) return false;
    return true;
  });
}

// Copies a segment into this rank's slot. Segments count from 1.
template <class T>
void GroupSum::State::bring(uint64_t segment, std::span<const TensorView> tensors, int64_t begin,
                            int64_t count) {
  // The first rank's slot is what all take the result from; the others' have been added to it when
  // this rank took the result.
  if (first() && segment > buffers) wait_for_all(&Progress::taken, segment - buffers);
  auto* own = reinterpret_cast<T*>(slot(rank, segment));
  each_part<T>(tensors, begin, count, [&](const T* data, int64_t at, int64_t n) {
    std::memcpy(own + at, data, static_cast<size_t>(n) * sizeof(T));
  });
  of(rank).copied.store(segment, std::memory_order_release);
}

// Adds a slice of all slots of this machine to that of the first rank.
template <class T>
void GroupSum::State::add_slice(uint64_t segment, int64_t count) {
  if (size > 1) {
    wait_for_all(&Progress::copied, segment);
    const Part slice = part_of(count, size, rank);
    auto* to = reinterpret_cast<T*>(slot(0, segment)) + slice.first;
    for (int r = 1; r < size; ++r)
      add(to, reinterpret_cast<const T*>(slot(r, segment)) + slice.first, slice.count);
  }
  of(rank).added.store(segment, std::memory_order_release);
}

// Starts the exchange with the other machines.
template <class T>
void GroupSum::State::send(uint64_t segment, int64_t count, bool rounded) {
  if (!first()) return;
  wait_for_all(&Progress::added, segment);
  std::vector<float>& residual = residuals[segment % buffers];
  if (rounded) residual.assign(static_cast<size_t>(count), 0.0f);
  if (machines > 1)
    exchanges[segment % buffers].start(reinterpret_cast<T*>(slot(0, segment)),
                                       rounded ? residual.data() : nullptr, count);
  else
    of(0).summed.store(segment, std::memory_order_release);
}

template <class T>
void GroupSum::State::take(uint64_t segment, std::span<const TensorView> tensors,
                           std::span<const TensorView> residual_tensors, int64_t begin,
                           int64_t count) {
  if (first() && machines > 1) {
    wait_until([&] { return exchanges[segment % buffers].test(); });
    of(0).summed.store(segment, std::memory_order_release);
  } else {
    wait_until([&] { return of(0).summed.load(std::memory_order_acquire) >= segment; });
  }
  const auto* result = reinterpret_cast<const T*>(slot(0, segment));
  each_part<T>(tensors, begin, count, [&](T* data, int64_t at, int64_t n) {
    std::memcpy(data, result + at, static_cast<size_t>(n) * sizeof(T));
  });
  each_part<float>(residual_tensors, begin, count, [&](float* data, int64_t at, int64_t n) {
    if (first())
      std::memcpy(data, residuals[segment % buffers].data() + at,
                  static_cast<size_t>(n) * sizeof(float));
    else
      std::fill_n(data, n, 0.0f);
  });
  of(rank).taken.store(segment, std::memory_order_release);
  trace.advance();
}

template <class T>
void GroupSum::State::sum(std::span<const TensorView> tensors,
                          std::span<const TensorView> residual_tensors) {
  int64_t total = 0;
  for (const TensorView& t : tensors) total += t.elements();
  constexpr auto kAtOnce = static_cast<int64_t>(kSegmentBytes / sizeof(T));
  const auto count = static_cast<uint64_t>((total + kAtOnce - 1) / kAtOnce);
  const auto begin_of = [&](uint64_t k) { return static_cast<int64_t>(k) * kAtOnce; };
  const auto count_of = [&](uint64_t k) { return std::min(kAtOnce, total - begin_of(k)); };
  const uint64_t base = segments + 1, take_behind = buffers - 1;
  segments += count;
  for (uint64_t i = 0; i < count + take_behind; ++i) {
    // Calls stage(k) with the segment that comes to it now, if there is one.
    const auto at = [&](uint64_t behind, auto&& stage) {
      if (i >= behind && i - behind < count) stage(i - behind);
    };
    at(0, [&](uint64_t k) { bring<T>(base + k, tensors, begin_of(k), count_of(k)); });
    at(kAddBehind, [&](uint64_t k) { add_slice<T>(base + k, count_of(k)); });
    at(kSendBehind, [&](uint64_t k) { send<T>(base + k, count_of(k), !residual_tensors.empty()); });
    at(take_behind,
       [&](uint64_t k) { take<T>(base + k, tensors, residual_tensors, begin_of(k), count_of(k)); });
  }
}

GroupSum::GroupSum(const void* parent, bool through_nodes, Trace& trace,
                   const std::atomic<bool>& stop)
    : state_(std::make_unique<State>(trace, stop)) {
  state_->open(*static_cast<const MPI_Comm*>(parent), through_nodes);
}

GroupSum::~GroupSum() {
  if (std::uncaught_exceptions() > 0) return;
  State& s = *state_;
  MPI_Win_free(&s.window);
  MPI_Comm_free(&s.node);
  if (s.leaders != MPI_COMM_NULL) MPI_Comm_free(&s.leaders);
}

void GroupSum::sum(std::span<const TensorView> tensors, std::span<const TensorView> residuals) {
  if (tensors.empty()) return;
  if (tensors[0].dtype() == DType::f64)
    state_->sum<double>(tensors, residuals);
  else
    state_->sum<float>(tensors, residuals);
}

int64_t GroupSum::bytes_sent() const {
  return state_->bytes_sent;
}

}  // namespace amur
