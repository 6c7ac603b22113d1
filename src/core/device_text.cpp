#include "src/core/device_backend.h"
#include "src/core/error.h"

namespace amur {

std::string Device::text() const {
  return kind == Kind::cpu ? "cpu" : fmt::format("cuda:{}", index);
}

std::string GpuInfo::text() const {
  return fmt::format("{} (sm_{}{}, {:.1f} GiB)", name, major, minor,
                     static_cast<double>(bytes) / (1 << 30));
}

}  // namespace amur
