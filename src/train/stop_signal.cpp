#include "src/train/stop_signal.h"

#include <array>
#include <csignal>

namespace amur {
namespace {

// A signal handler can reach nothing but static memory.
volatile std::sig_atomic_t received_signal = 0;
constexpr std::array kSignals = {SIGINT, SIGTERM, SIGUSR1};

extern "C" void on_signal(int signal) {
  if (signal == SIGINT && received_signal == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  received_signal = signal;
}

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  for (int signal : kSignals) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  for (int signal : kSignals) std::signal(signal, SIG_DFL);
}

bool StopSignal::received() {
  return received_signal != 0;
}

const char* StopSignal::name() {
  switch (received_signal) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "";
  }
}

}  // namespace amur
