// What optimizers share at the end of a step: the agreed check for finite values.
#pragma once

#include <functional>
#include <string>

#include "comm/communicator.h"
#include "src/model/parameter.h"

namespace amur {

// Throws NumericError on every rank if some rank accumulated a non-finite value: it names the first
// tensor in set order and the first rank that has it there. `finite(i)` checks parameters[i] on
// this rank. Nothing has been summed or updated then. Collective.
void require_finite_gradients(const ParameterSet& parameters, int64_t step,
                              const std::function<bool(size_t)>& finite, Communicator& dp);

}  // namespace amur
