// Moving whole rows: from the order of a batch to the order of a chunk and back.
#pragma once

#include <cstdint>
#include <span>

#include "src/core/tensor.h"

namespace amur {

// to[i, :] = from[index[i], :]      from [m, n], to [index.size(), n], same dtype
void gather_rows(ConstTensorView from, std::span<const int32_t> index, TensorView to,
                 Stream stream = {});
// to[index[i], :] = from[i, :]      the indices are distinct
void scatter_rows(ConstTensorView from, std::span<const int32_t> index, TensorView to,
                  Stream stream = {});

}  // namespace amur
