// The Runtime of a test program that is registered with RANKS.
#pragma once

#include "comm/runtime.h"

namespace amur {

// Alive from before the first test until after the last one.
Runtime& test_runtime();

}  // namespace amur
