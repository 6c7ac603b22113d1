// Some rows of a matrix: moved from the order of a batch to the order of a chunk and back, and
// those of a table that a step touches.
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

// x[rows[k], :] *= factors[k], and 0 for a factor of 0, whatever was there; the rows are distinct.
void scale_rows(TensorView x, std::span<const int64_t> rows, std::span<const double> factors,
                Stream stream = {});
// The sum over these rows of x^2, in double and a fixed order.
double sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows);
// True if every element of these rows is finite.
bool all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows);

}  // namespace amur
