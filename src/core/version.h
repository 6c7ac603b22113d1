#pragma once

namespace amur {

// Of this program: "0.1.0".
inline constexpr const char* kVersion = AMUR_VERSION;

}  // namespace amur
