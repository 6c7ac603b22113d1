// Ends the whole job when a rank stops or nothing moves.
//
// A thread on every rank sends its rank's position (phase, last collective) to rank 0, and rank 0
// its own to every rank. Liveness: a rank that has not been heard of for the limit, also rank 0.
// Progress: no rank has moved for the limit; ranks that only wait for one that works are not stuck.
// Whoever notices prints the culprit; every rank that is alive adds its last collectives; then the
// job is aborted. A job that was suspended as a whole goes on. On SIGUSR2 each rank prints where it
// is and its last collectives, and goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace amur {

class Trace;

// A rank's heartbeat as it travels; plain bytes.
struct Heartbeat {
  static constexpr int kTextBytes = 96;
  uint64_t events = 0;
  uint64_t collectives = 0;
  uint64_t sequence = 0;  // of the last collective within its group
  uint8_t in_collective = 0;
  uint8_t finished = 0;  // its work is done; it waits for the others
  uint8_t kind = 0;      // Watchdog's own
  char group[16] = {};
  char phase[kTextBytes] = {};
  char last[2 * kTextBytes] = {};  // the last collective's text
};

// The ranks that hold up the others, and why, when nothing moves.
struct Lagging {
  std::vector<int> ranks;  // empty where all are alike
  std::string reason;      // "is not in a collective while the others wait in one"
};
Lagging find_lagging(const std::vector<Heartbeat>& ranks);

// "phase 'pass 1', in dp.all_reduce sum #17, ..." for messages.
std::string describe(const Heartbeat& heartbeat);

struct WatchdogLimits {
  double liveness_seconds = 15;
  double progress_seconds = 600;
};

class Watchdog {
 public:
  // `world` points to an MPI_Comm; `labels` name the ranks ("rank 3/8 node07"). With
  // `messages` false (MPI without thread multiple) each rank watches its own progress only.
  // `abort_job(message)` must not return. Collective.
  Watchdog(const void* world, std::vector<std::string> labels, WatchdogLimits limits, Trace& trace,
           bool messages, std::function<void(const std::string&)> abort_job);
  // Waits, watching, until every rank has come here.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace amur
