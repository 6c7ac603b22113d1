#include "src/core/error.h"

#include <string_view>

namespace amur {

std::string CallSite::text() const {
  std::string_view path = file;
  for (std::string_view top : {"/tests/", "/src/", "/comm/", "/kernels/"}) {
    if (auto at = path.rfind(top); at != std::string_view::npos) {
      path.remove_prefix(at + 1);
      break;
    }
  }
  return fmt::format("{}:{}", path, line);
}

InternalError::InternalError(const std::string& message, CallSite site)
    : Error(kExitBug, fmt::format("internal error at {}: {}", site.text(), message)) {}

void fail_check(const char* condition, const std::string& message, CallSite site) {
  throw InternalError(
      message.empty() ? fmt::format("`{}` does not hold", condition)
                      : fmt::format("`{}` does not hold: {}", condition, message),
      site);
}

}  // namespace amur
