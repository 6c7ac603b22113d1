// The operations of a reduction. No average: whoever wants a mean states the scale.
#pragma once

#include <cstdint>

namespace amur {

enum class ReduceOp : uint8_t { sum, max, min };

}  // namespace amur
