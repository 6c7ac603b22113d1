// Starting and ending MPI, threads per rank, and what happens when a rank fails.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace amur {

class Trace;

struct RuntimeOptions {
  int threads = 0;                // compute threads of this rank; 0: share of the cores (see below)
  double liveness_seconds = 15;   // a rank whose heartbeat stops for this long ends the job
  double progress_seconds = 600;  // no advance in the same phase for this long ends the job
  bool check_collectives =
      false;  // compare (sequence, op, dtype, count, site) before each collective
};

// One per process; made first in main and destroyed last. The destructor finalises MPI only when no
// exception is in flight.
class Runtime {
 public:
  // Compares the launcher's environment with the MPI found (throws UsageError where N ranks would
  // become N single runs), initialises MPI with MPI_THREAD_MULTIPLE where it is given, and chooses
  // the threads: cores of the affinity mask shared by the ranks of the node, capped by the
  // container's quota. Makes ranks yield when there are more ranks than cores.
  Runtime(int* argc, char*** argv);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Starts the heartbeat and watchdog with these limits, and takes over the threads and the check
  // mode. Collective; once.
  void start_watchdog(const RuntimeOptions& options);

  int rank() const;
  int size() const;
  int node_rank() const;  // position among the ranks of this machine
  int node_size() const;
  int nodes() const;
  const std::string& host() const;
  bool threads_may_communicate() const;  // MPI gives MPI_THREAD_MULTIPLE
  int cores_per_rank() const;            // this rank's share of the cores of this machine
  int threads() const;
  std::string threads_text() const;  // "1 thread per rank (2 cores, 2 ranks on this machine)"
  std::string library_text() const;  // "Open MPI 4.1.4, thread multiple"
  std::string hosts_text() const;    // "2 hosts: node07 (ranks 0-3), node08 (ranks 4-7)"
  Trace& trace();

  // Names the phase this rank is in ("pass 1, chunk 3/8"), for the heartbeat: `advance` tells that
  // work goes on. Cheap.
  void set_phase(const std::string& phase);
  void advance();

  // Where this rank stands in the grid ("dp 1, tp 1"), for messages.
  void set_position(const std::string& position);

  // Called when an exception reached main or the watchdog fired: prints, then ends the whole job
  // with this exit code.
  [[noreturn]] void abort_job(int exit_code, const std::string& message);

  // Called on a rank where an exception ended the work. Where every rank calls it within two
  // seconds with the same message, rank 0 prints that once and all return the exit code; otherwise
  // this rank prints and ends the job. Usage errors and interruptions
  // are printed without phase and trace.
  int fail_together(int exit_code, const std::string& message);

  // The handle of the world communicator (a pointer to an MPI_Comm).
  const void* mpi_world() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Runs body(runtime), turning exceptions into messages and exit codes (src/core/error.h):
// UsageError is printed once; any other failure on a rank of many ends the whole job with its rank,
// host, phase.
int run_main(int argc, char** argv, const std::function<int(Runtime&)>& body);

}  // namespace amur
