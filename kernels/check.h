// Checks that every operation makes of its arguments before it dispatches.
#pragma once

#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

// Throws InternalError unless all tensors, where defined, lie on one device.
void require_device(const char* op, std::initializer_list<ConstTensorView> tensors);
inline bool on_gpu(ConstTensorView tensor) {
  return tensor.device().kind == Device::Kind::cuda;
}
void require_shape(const char* op, const char* name, ConstTensorView tensor, const Shape& shape);
void require_dtype(const char* op, const char* name, ConstTensorView tensor, DType dtype);
// A tensor seen as [rows, columns] of this dtype.
void require_matrix(const char* op, const char* name, ConstTensorView tensor, int64_t rows,
                    int64_t columns, DType dtype);
// cu_seqlens runs from 0 to `tokens` in steps of 1 .. longest; on a GPU its values are not looked
// at.
void require_packed(const char* op, const PackedSequences& packed, int64_t tokens);
// The keys are there where the site drops anything, and its probability is in [0, 1).
void require_dropout(const char* op, const PackedSequences& packed, const DropoutSite& site);

}  // namespace amur
