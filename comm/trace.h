// What this rank is doing: its phase and its last collectives, for error messages, the check mode
// and the watchdog. Written by the threads that communicate, read by the watchdog's.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "src/core/call_site.h"
#include "src/core/dtype.h"

namespace amur {

struct CollectiveRecord {
  uint64_t sequence = 0;  // within its group, from 1
  std::string group;      // "dp"
  const char* op = "";    // a literal: "all_reduce sum"
  DType dtype = DType::u8;
  int64_t count = -1;  // elements on this rank's side; -1: not known to all ranks
  int root = -1;
  uint64_t detail = 0;  // hash of what else must agree: counts of a list, rows of each rank
  CallSite site;
  bool done = false;

  std::string text() const;  // "dp.all_reduce sum #17, f32 x 1024, at src/train/trainer.cpp:42"
  uint64_t hash() const;     // equal on all ranks of a group that make the same call
};

// Where a rank stands, as sent in heartbeats.
struct Position {
  std::string phase;
  uint64_t events = 0;       // grows with every phase, advance and collective
  uint64_t collectives = 0;  // entered so far, over all groups
  bool in_collective = false;
  // The newest, or the one beside the main thread that it waits for; meaningful when collectives >
  // 0.
  CollectiveRecord last;
};

class Trace {
 public:
  static constexpr size_t kKept = 64;

  void set_phase(const std::string& phase);
  std::string phase() const;
  void advance();

  // `enter` before a collective, `leave` once it succeeded. Not nested.
  void enter(CollectiveRecord record);
  void leave();
  // Instead of `leave`: the collective goes on beside the main thread, which may wait for it by its
  // ticket.
  uint64_t detach();
  void end(uint64_t ticket);
  void wait_for(uint64_t ticket);
  void waited();

  Position position() const;
  // The newest `count` records, oldest first.
  std::vector<CollectiveRecord> last(size_t count) const;
  // The same as indented lines; says so when there are none.
  std::string last_text(size_t count) const;

  // "rank 3/8 (dp 1, tp 1) node07"
  void set_label(std::string label);
  std::string label() const;

  bool check_collectives() const { return check_collectives_.load(std::memory_order_relaxed); }
  void set_check_collectives(bool on) { check_collectives_.store(on, std::memory_order_relaxed); }

  // Makes waits in collectives throw CommError(why) from now on.
  void interrupt(const std::string& why);
  void throw_if_interrupted() const {
    if (interrupted_.load(std::memory_order_acquire)) [[unlikely]]
      throw_interrupted();
  }

 private:
  [[noreturn]] void throw_interrupted() const;

  mutable std::mutex mutex_;
  std::array<CollectiveRecord, kKept> ring_;
  std::string phase_ = "start";
  std::string label_;
  std::string interrupt_reason_;
  uint64_t events_ = 0;
  uint64_t collectives_ = 0;
  bool in_collective_ = false;
  uint64_t awaited_ = 0;  // ticket; 0: none
  std::atomic<bool> check_collectives_{false};
  std::atomic<bool> interrupted_{false};
};

}  // namespace amur
