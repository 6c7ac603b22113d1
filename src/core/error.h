// The kinds of failure and the exit code of each (docs/running.md lists them for users).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "src/core/call_site.h"

namespace amur {

enum ExitCode : int {
  kExitOk = 0,
  kExitUsage = 2,
  kExitComm = 3,
  kExitIo = 4,
  kExitNumeric = 5,
  kExitBug = 70,
  kExitInterrupted = 75,  // a checkpoint was written: start the same command again
};

// Messages say what happened, with which value, and what to do. No trailing newline.
class Error : public std::runtime_error {
 public:
  Error(int exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

// The user can mend it: a bad option, configuration or input. Printed once, without a stack.
class UsageError : public Error {
 public:
  template <class... A>
  explicit UsageError(fmt::format_string<A...> format, A&&... a)
      : Error(kExitUsage, fmt::format(format, std::forward<A>(a)...)) {}
};

// A collective failed, timed out or was entered differently by different ranks.
class CommError : public Error {
 public:
  template <class... A>
  explicit CommError(fmt::format_string<A...> format, A&&... a)
      : Error(kExitComm, fmt::format(format, std::forward<A>(a)...)) {}
};

// A file could not be read or written, or holds something else than it should.
class IoError : public Error {
 public:
  template <class... A>
  explicit IoError(fmt::format_string<A...> format, A&&... a)
      : Error(kExitIo, fmt::format(format, std::forward<A>(a)...)) {}
};

// A value stopped being finite where the run cannot go on.
class NumericError : public Error {
 public:
  template <class... A>
  explicit NumericError(fmt::format_string<A...> format, A&&... a)
      : Error(kExitNumeric, fmt::format(format, std::forward<A>(a)...)) {}
};

// Not a failure: the run has to stop here, and goes on from its newest checkpoint.
class Interrupted : public Error {
 public:
  template <class... A>
  explicit Interrupted(fmt::format_string<A...> format, A&&... a)
      : Error(kExitInterrupted, fmt::format(format, std::forward<A>(a)...)) {}
};

// A programming error of ours; `what()` carries the call site.
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message, CallSite site = CallSite::here());
};

[[noreturn]] void fail_check(const char* condition, const std::string& message, CallSite site);

}  // namespace amur

// Checks an invariant of ours, never user input. Evaluated in every build.
#define AMUR_CHECK(condition, ...)                                             \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::amur::fail_check(#condition, ::fmt::format(__VA_ARGS__), ::amur::CallSite::here()); \
  } while (false)
