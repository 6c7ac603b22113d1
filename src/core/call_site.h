// Where in the source a call was made: shown in errors and in the trace of collectives.
#pragma once

#include <string>

namespace amur {

// Take it as a last, defaulted argument: `void f(int x, CallSite site = CallSite::here())`.
struct CallSite {
  const char* file = "";
  int line = 0;

  static constexpr CallSite here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  // "src/train/trainer.cpp:42"; the part before the repository's top folders is cut off.
  std::string text() const;
};

}  // namespace amur
