// What all chunks of a step compute from the weights alone: copies in the dtype of the activations.
// The first chunk that needs one makes it.
#pragma once

#include <functional>
#include <map>

#include "src/core/tensor.h"

namespace amur {

class ParameterSet;

class StepCopies {
 public:
  explicit StepCopies(Device device) : device_(device) {}

  // That of `owner`, always of one shape and dtype: what `make` filled when it was first asked for
  // since `forget`.
  ConstTensorView get(const void* owner, const Shape& shape, DType dtype,
                      const std::function<void(TensorView)>& make);
  // The weights change: no copy holds any more. Their memory stays.
  void forget();

  // At most so many bytes for chunks of this dtype.
  static size_t bytes_for(const ParameterSet& parameters, DType dtype);

 private:
  struct Copy {
    Tensor values;
    bool holds = false;
  };
  Device device_;
  std::map<const void*, Copy> copies_;
};

}  // namespace amur
