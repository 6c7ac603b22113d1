// The elements of a tp rank's slab, with their places in the whole tensor.
#pragma once

#include "src/model/parameter.h"

namespace amur::test {

// f(local element, global element), in local order.
template <class F>
void for_each_element(const Parameter& parameter, int tp_rank, int tp_size, const F& f) {
  const Shape global = parameter.global_shape();
  const Slab slab = slab_of(parameter, tp_rank, tp_size);
  for (int64_t local = 0; local < slab.count.elements(); ++local) {
    int64_t rest = local, index = 0, stride = 1;
    for (int d = global.dims(); d-- > 0;) {
      index += (slab.first[d] + rest % slab.count[d]) * stride;
      rest /= slab.count[d];
      stride *= global[d];
    }
    f(local, index);
  }
}

}  // namespace amur::test
