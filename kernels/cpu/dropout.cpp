// Compiled once per instruction set.
#include "kernels/cpu/dropout.h"

#include <vector>

#include "kernels/cpu/dropout_simd.h"
#include "kernels/cpu/parallel.h"

namespace amur::cpu {
namespace AMUR_ISA {

template <class T>
void add(const DropoutRows<T>& a) {
  using A = AccumulateType<T>;
  const uint32_t threshold = dropout_threshold(a.site.probability);
  const A factor = static_cast<A>(1 / (1 - a.site.probability));
  const int64_t tokens = a.cu_seqlens[a.sequences];
  parallel_for(tokens, 32, [&](int64_t first, int64_t last) {
    std::vector<uint16_t> lanes(static_cast<size_t>(dropout_room(a.width)));
    int64_t s =
        std::upper_bound(a.cu_seqlens, a.cu_seqlens + a.sequences, first) - a.cu_seqlens - 1;
    uint64_t key = dropout_key(a.keys[s], a.site.layer, a.site.site);
    for (int64_t t = first; t < last; ++t) {
      if (t == a.cu_seqlens[s + 1]) key = dropout_key(a.keys[++s], a.site.layer, a.site.site);
      const uint64_t position = static_cast<uint64_t>(t - a.cu_seqlens[s]);
      dropout_lanes(key, position, 0, a.width, lanes.data());
      const T* x = a.x + t * a.width;
      T* y = a.y + t * a.width;
      if (a.residual) {
        const T* residual = a.residual + t * a.width;
        for_each_vector<A>(a.width, [&](auto at) {
          at.store_to(y, at.load_from(residual) +
                             dropped<A>(at.load_from(x), lanes.data() + at.at, threshold, factor));
        });
      } else {
        for_each_vector<A>(a.width, [&](auto at) {
          at.store_to(y, dropped<A>(at.load_from(x), lanes.data() + at.at, threshold, factor));
        });
      }
    }
  });
}

}  // namespace AMUR_ISA

AMUR_KERNEL_TABLE(DropoutKernels<float>, AMUR_ISA::add)
AMUR_KERNEL_TABLE(DropoutKernels<bf16>, AMUR_ISA::add)
AMUR_KERNEL_TABLE(DropoutKernels<double>, AMUR_ISA::add)

}  // namespace amur::cpu
