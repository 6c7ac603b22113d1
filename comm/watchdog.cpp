#include "comm/watchdog.h"

#include <mpi.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "comm/mpi_check.h"
#include "comm/trace.h"
#include "src/core/error.h"
#include "src/core/log.h"

namespace amur {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// A signal handler can reach nothing but static memory.
volatile std::sig_atomic_t asked = 0;
extern "C" void on_ask(int) {
  asked = 1;
}

enum Kind : uint8_t { kBeat, kVerdict, kLast };

constexpr int kTag = 1;
constexpr Seconds kFinishTick{0.005};
// How long a rank waits for another thread or rank to end the job before it does so itself.
constexpr auto kOthersGrace = std::chrono::seconds(5);
constexpr size_t kShownRanks = 32;
constexpr size_t kCollectivesInVerdict = 3;
constexpr size_t kAskedCollectives = 16;

template <size_t N>
void put(char (&to)[N], const std::string& text) {
  const size_t n = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), n);
  std::memset(to + n, 0, N - n);
}

double seconds(Clock::duration d) {
  return Seconds(d).count();
}

}  // namespace

std::string describe(const Heartbeat& h) {
  if (h.finished) return "has finished its work";
  if (h.collectives == 0) return fmt::format("in phase '{}', before any collective", h.phase);
  return fmt::format("in phase '{}', {} {}", h.phase, h.in_collective ? "waiting in" : "after",
                     h.last);
}

Lagging find_lagging(const std::vector<Heartbeat>& ranks) {
  const auto where = [&](auto&& condition) {
    std::vector<int> found;
    for (size_t r = 0; r < ranks.size(); ++r)
      if (condition(ranks[r])) found.push_back(static_cast<int>(r));
    return found;
  };
  if (ranks.size() < 2) return {};
  auto outside = where([](const Heartbeat& h) { return h.finished || !h.in_collective; });
  if (!outside.empty() && outside.size() < ranks.size())
    return {std::move(outside), "is not in a collective while the others wait in one"};
  if (outside.empty()) {
    // Everyone waits. In one group a smaller sequence number is behind; otherwise the calls differ.
    const bool one_group = std::all_of(ranks.begin(), ranks.end(), [&](const Heartbeat& h) {
      return std::strcmp(h.group, ranks[0].group) == 0;
    });
    const uint64_t most =
        std::max_element(ranks.begin(), ranks.end(), [](const Heartbeat& a, const Heartbeat& b) {
          return a.sequence < b.sequence;
        })->sequence;
    if (one_group) {
      auto behind = where([&](const Heartbeat& h) { return h.sequence < most; });
      if (!behind.empty()) return {std::move(behind), "waits in an earlier collective"};
    }
    // Those that are not in the call that most are in; all, where there is no such call.
    for (const Heartbeat& candidate : ranks) {
      auto others =
          where([&](const Heartbeat& h) { return std::strcmp(h.last, candidate.last) != 0; });
      if (others.empty()) return {};
      if (others.size() * 2 < ranks.size())
        return {std::move(others), "waits in another collective than the others"};
    }
    return {where([](const Heartbeat&) { return true; }),
            "waits in another collective than the others"};
  }
  const uint64_t most =
      std::max_element(ranks.begin(), ranks.end(), [](const Heartbeat& a, const Heartbeat& b) {
        return a.collectives < b.collectives;
      })->collectives;
  return {where([&](const Heartbeat& h) { return h.collectives < most; }),
          "has entered fewer collectives than the others"};
}

struct Watchdog::State {
  State(std::vector<std::string> rank_labels, WatchdogLimits given, Trace& rank_trace,
        std::function<void(const std::string&)> end)
      : labels(std::move(rank_labels)),
        limits(given),
        trace(rank_trace),
        abort_job(std::move(end)) {}

  // What this rank knows of another one, and the messages to and from it.
  struct Peer {
    Heartbeat seen, sending, receiving;
    Clock::time_point heard, moved;
    MPI_Request send = MPI_REQUEST_NULL, receive = MPI_REQUEST_NULL;
    bool last_sent = false, last_received = false;
  };

  const std::vector<std::string> labels;
  const WatchdogLimits limits;
  Trace& trace;
  const std::function<void(const std::string&)> abort_job;

  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;
  Seconds interval{1};
  std::vector<Peer> peers;  // by rank; only [0] is watched by the others
  Clock::time_point last_tick, last_beat;
  bool sent_finished = false, ending = false;
  std::string verdict;  // once there is one, this rank only waits for the end
  Clock::time_point abort_at;

  std::mutex mutex;
  std::condition_variable wake;
  bool finished = false;  // guarded by mutex
  std::thread thread;

  bool hub() const { return rank == 0; }
  bool talks_to(int r) const { return comm != MPI_COMM_NULL && r != rank && (hub() || r == 0); }

  void run();
  bool tick(bool done);
  void tick_alone();
  Heartbeat own(bool done) const;
  void post_receive(int r);
  void send(int r, Heartbeat beat);
  void receive_all(Clock::time_point now);
  void check_liveness(Clock::time_point now);
  void check_progress(Clock::time_point now);
  void pronounce(const std::string& text, Clock::time_point now);
  std::string stuck_text(double for_seconds) const;
};

Heartbeat Watchdog::State::own(bool done) const {
  const Position p = trace.position();
  Heartbeat h;
  h.events = p.events;
  h.collectives = p.collectives;
  h.in_collective = p.in_collective;
  h.finished = done;
  put(h.phase, p.phase);
  if (p.collectives > 0) {
    h.sequence = p.last.sequence;
    put(h.group, p.last.group);
    put(h.last, p.last.text());
  }
  return h;
}

void Watchdog::State::post_receive(int r) {
  Peer& p = peers[static_cast<size_t>(r)];
  check_mpi(MPI_Irecv(&p.receiving, sizeof(Heartbeat), MPI_BYTE, r, kTag, comm, &p.receive),
            "MPI_Irecv");
}

// Skipped while the message before is under way: a rank that stands still must not hold this one.
void Watchdog::State::send(int r, Heartbeat beat) {
  Peer& p = peers[static_cast<size_t>(r)];
  int free = 0;
  check_mpi(MPI_Test(&p.send, &free, MPI_STATUS_IGNORE), "MPI_Test");
  if (!free || p.last_sent) return;
  p.sending = beat;
  p.last_sent = beat.kind == kLast;
  check_mpi(MPI_Isend(&p.sending, sizeof(Heartbeat), MPI_BYTE, r, kTag, comm, &p.send),
            "MPI_Isend");
}

void Watchdog::State::receive_all(Clock::time_point now) {
  for (int r = 0; r < size; ++r) {
    Peer& p = peers[static_cast<size_t>(r)];
    while (talks_to(r) && !p.last_received) {
      int arrived = 0;
      check_mpi(MPI_Test(&p.receive, &arrived, MPI_STATUS_IGNORE), "MPI_Test");
      if (!arrived) break;
      const Heartbeat h = p.receiving;
      p.heard = now;
      if (h.kind == kLast) {
        p.last_received = true;
        break;
      }
      if (h.events != p.seen.events || h.finished != p.seen.finished) p.moved = now;
      p.seen = h;
      post_receive(r);
      if (h.kind == kVerdict && verdict.empty()) {
        verdict = "the watchdog of another rank ends the job";
        abort_at = now + kOthersGrace;
        Log::error_here("{}: {}\n{}", trace.phase(), verdict,
                        trace.last_text(kCollectivesInVerdict));
      }
    }
  }
}

void Watchdog::State::pronounce(const std::string& text, Clock::time_point now) {
  verdict = text;
  // Rank 0 gives the others time to say their part.
  const Seconds grace(hub() && size > 1 ? std::min(1.5, 1.2 * interval.count() + 0.1) : 0.0);
  abort_at = now + std::chrono::duration_cast<Clock::duration>(grace);
  for (int r = 0; r < size; ++r) {
    if (!talks_to(r)) continue;
    Heartbeat h;
    h.kind = kVerdict;
    send(r, h);
  }
}

void Watchdog::State::check_liveness(Clock::time_point now) {
  for (int r = 0; r < size; ++r) {
    const Peer& p = peers[static_cast<size_t>(r)];
    if (!talks_to(r) || p.last_received) continue;
    // Where rank 0 stands still everyone notices; one after the other, so that one rank reports.
    const double patience = limits.liveness_seconds + (hub() ? 0.0 : 0.2 * std::min(rank - 1, 10));
    const double silent = seconds(now - p.heard);
    if (silent <= patience) continue;
    return pronounce(
        fmt::format("{} has not been heard of for {:.1f} s (runtime.liveness_seconds={}): stopped, "
                    "dead or cut off; last seen {}",
                    labels[static_cast<size_t>(r)], silent, limits.liveness_seconds,
                    describe(p.seen)),
        now);
  }
}

std::string Watchdog::State::stuck_text(double for_seconds) const {
  std::vector<Heartbeat> all;
  for (const Peer& p : peers) all.push_back(p.seen);
  const Lagging lagging = find_lagging(all);
  std::string text = fmt::format("no rank has moved for {:.1f} s (runtime.progress_seconds={})",
                                 for_seconds, limits.progress_seconds);
  std::vector<int> order = lagging.ranks;
  for (int r = 0; r < size; ++r)
    if (std::find(lagging.ranks.begin(), lagging.ranks.end(), r) == lagging.ranks.end())
      order.push_back(r);
  for (size_t i = 0; i < std::min(order.size(), kShownRanks); ++i)
    text += fmt::format("\n  {}{}: {}", labels[static_cast<size_t>(order[i])],
                        i < lagging.ranks.size() ? " " + lagging.reason : "",
                        describe(all[static_cast<size_t>(order[i])]));
  if (order.size() > kShownRanks)
    text += fmt::format("\n  and {} more ranks", order.size() - kShownRanks);
  return text;
}

void Watchdog::State::check_progress(Clock::time_point now) {
  double stuck = -1;
  for (const Peer& p : peers) {
    if (p.seen.finished) continue;
    const double still = seconds(now - p.moved);
    if (still <= limits.progress_seconds) return;
    stuck = stuck < 0 ? still : std::min(stuck, still);
  }
  if (stuck >= 0) pronounce(stuck_text(stuck), now);
}

// True when all is over.
bool Watchdog::State::tick(bool done) {
  const auto now = Clock::now();
  // A gap in this thread's own life means that this process was suspended, most likely with the
  // whole job: what it last heard of the others says nothing then.
  if (seconds(now - last_tick) > 0.5 * limits.liveness_seconds + interval.count())
    for (Peer& p : peers) p.heard = p.moved = now;
  last_tick = now;

  Peer& self = peers[static_cast<size_t>(rank)];
  Heartbeat beat = own(done);
  if (beat.events != self.seen.events || beat.finished != self.seen.finished) self.moved = now;
  self.seen = beat;
  receive_all(now);

  if (!verdict.empty()) {
    if (now >= abort_at) abort_job(verdict);
    return false;
  }

  const bool everyone_done =
      std::all_of(peers.begin(), peers.end(), [](const Peer& p) { return p.seen.finished != 0; });
  if (hub() ? (done && everyone_done) : peers[0].last_received) ending = true;
  if (ending) {
    beat.kind = kLast;
    bool over = true;
    for (int r = 0; r < size; ++r) {
      if (!talks_to(r)) continue;
      send(r, beat);
      Peer& p = peers[static_cast<size_t>(r)];
      int sent = 0;
      check_mpi(MPI_Test(&p.send, &sent, MPI_STATUS_IGNORE), "MPI_Test");
      over = over && p.last_sent && sent && p.last_received;
    }
    if (over) return true;
  } else if (Seconds(now - last_beat) >= interval || (done && !sent_finished)) {
    for (int r = 0; r < size; ++r)
      if (talks_to(r)) send(r, beat);
    last_beat = now;
    sent_finished = done;
  }
  check_liveness(now);
  if (hub() && verdict.empty()) check_progress(now);
  return false;
}

// Without messages: a main thread that waits in a collective is made to throw and ends the job. One
// that is elsewhere is named here, and if it does not come by this process ends, and with it the
// job.
void Watchdog::State::tick_alone() {
  const auto now = Clock::now();
  Peer& self = peers[static_cast<size_t>(rank)];
  const Heartbeat beat = own(false);
  if (beat.events != self.seen.events) self.moved = now;
  self.seen = beat;
  const double still = seconds(now - self.moved);
  if (verdict.empty() && still > limits.progress_seconds) {
    verdict = fmt::format("no progress for {:.1f} s (runtime.progress_seconds={}): {}", still,
                          limits.progress_seconds, describe(beat));
    abort_at = now + kOthersGrace;
    if (!beat.in_collective)
      Log::error_here("{}: {}\n{}", trace.phase(), verdict, trace.last_text(kCollectivesInVerdict));
    trace.interrupt(verdict);
  }
  if (!verdict.empty() && now >= abort_at) std::_Exit(kExitComm);
}

void Watchdog::State::run() {
  // Signals are the main thread's.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  struct sigaction answer {};
  answer.sa_handler = on_ask;
  answer.sa_flags = SA_RESTART;
  sigaction(SIGUSR2, &answer, nullptr);
  try {
    // The first heartbeat goes out at once.
    bool over = comm != MPI_COMM_NULL && tick(false);
    while (!over) {
      bool done = false;
      {
        std::unique_lock lock(mutex);
        const Seconds pause = finished ? std::min(interval, kFinishTick) : interval;
        wake.wait_for(lock, pause, [&] { return finished && !sent_finished; });
        done = finished;
      }
      if (asked) {
        asked = 0;
        Log::warn_here("SIGUSR2: {}\n{}", describe(own(done)), trace.last_text(kAskedCollectives));
      }
      if (comm != MPI_COMM_NULL) {
        over = tick(done);
      } else {
        tick_alone();
        over = done;
      }
    }
  } catch (const std::exception& e) {
    abort_job(fmt::format("the heartbeat failed: {}", e.what()));
  }
}

Watchdog::Watchdog(const void* world, std::vector<std::string> labels, WatchdogLimits limits,
                   Trace& trace, bool messages, std::function<void(const std::string&)> abort_job)
    : state_(std::make_unique<State>(std::move(labels), limits, trace, std::move(abort_job))) {
  State& s = *state_;
  const MPI_Comm parent = *static_cast<const MPI_Comm*>(world);
  check_mpi(MPI_Comm_rank(parent, &s.rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(parent, &s.size), "MPI_Comm_size");
  s.interval = Seconds(
      std::clamp(std::min(limits.liveness_seconds, limits.progress_seconds) / 10, 0.02, 1.0));
  s.peers.resize(static_cast<size_t>(s.size));
  s.last_tick = Clock::now();
  for (State::Peer& p : s.peers) p.heard = p.moved = s.last_tick;
  if (messages) {
    check_mpi(MPI_Comm_dup(parent, &s.comm), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(s.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    for (int r = 0; r < s.size; ++r)
      if (s.talks_to(r)) s.post_receive(r);
  }
  s.thread = std::thread([&s] { s.run(); });
}

Watchdog::~Watchdog() {
  State& s = *state_;
  {
    std::lock_guard lock(s.mutex);
    s.finished = true;
  }
  s.wake.notify_one();
  s.thread.join();
  if (s.comm != MPI_COMM_NULL) MPI_Comm_free(&s.comm);
}

}  // namespace amur
