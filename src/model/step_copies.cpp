#include "src/model/step_copies.h"

#include "src/model/parameter.h"

namespace amur {

ConstTensorView StepCopies::get(const void* owner, const Shape& shape, DType dtype,
                                const std::function<void(TensorView)>& make) {
  Copy& copy = copies_[owner];
  if (!copy.values.defined()) copy.values = Tensor(shape, dtype, device_);
  AMUR_CHECK(copy.values.shape() == shape && copy.values.dtype() == dtype,
             "a copy {} {}, not {} {}", name_of(copy.values.dtype()), copy.values.shape().text(),
             name_of(dtype), shape.text());
  if (!copy.holds) make(copy.values);
  copy.holds = true;
  return copy.values;
}

void StepCopies::forget() {
  for (auto& [owner, copy] : copies_) copy.holds = false;
}

size_t StepCopies::bytes_for(const ParameterSet& parameters, DType dtype) {
  size_t bytes = 0;
  for (const Parameter& p : parameters)
    if ((p.kind == ParamKind::weight || p.kind == ParamKind::bias) && p.value.dtype() != dtype)
      bytes += static_cast<size_t>(p.value.elements()) * size_of(dtype);
  return bytes;
}

}  // namespace amur
