// Threads of the CPU kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gemm.h"

namespace amur::cpu {

// f(first, last) over 0..n-1 in pieces of at least `grain` (but the last). Pieces run in any order
// on any thread and their borders depend on the number of threads: f must compute each index on its
// own. f must not throw. Reductions go over blocks of a fixed size and add the blocks in order.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  const int64_t threads = compute_threads();
  if (threads == 1 || n <= grain) {
    f(int64_t{0}, n);
    return;
  }
  // A few pieces a thread, because their costs differ (lengths are sorted) and cores are shared.
  const int64_t piece = std::max(grain, (n + 4 * threads - 1) / (4 * threads));
  const int64_t pieces = (n + piece - 1) / piece;
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast <int>(threads))
#endif
  for (int64_t i = 0; i < pieces; ++i) f(i * piece, std::min(n, (i + 1) * piece));
}

}  // namespace amur::cpu
