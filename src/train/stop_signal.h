// SIGINT, SIGTERM and SIGUSR1 ask a run to stop at the next good moment, with a checkpoint.
#pragma once

namespace amur {

// While one lives, the three signals set a flag instead of ending the process; a second SIGINT ends
// it at once. At most one at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  static bool received();
  static const char* name();  // "SIGTERM", or "" where none was received
};

}  // namespace amur
