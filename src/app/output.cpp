#include "src/app/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "src/core/error.h"

namespace amur {

int print_text(const std::string& text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw IoError("cannot write to standard output: {}", std::strerror(errno));
  return kExitOk;
}

}  // namespace amur
