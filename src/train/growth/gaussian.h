// Distances between two clouds of vectors, taken as Gaussians (kexue.fm/archives/8512).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace amur {

// Row-major symmetric [n, n].
struct SymmetricMatrix {
  int64_t n = 0;
  std::vector<double> values;
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * n + j)]; }
};

// values[k] ascending, vectors in columns: A = V diag(values) V^T. Cyclic Jacobi rotations.
struct Eigen {
  std::vector<double> values;
  std::vector<double> vectors;  // [n, n]
};
Eigen eigen(SymmetricMatrix a);

struct Gaussian {
  std::vector<double> mean;
  SymmetricMatrix covariance;
};
// Of rows [count, width]; `ridge` times the mean variance is added to the diagonal, which fewer
// rows than coordinates, or coordinates that repeat each other, make necessary.
Gaussian gaussian_of(const std::vector<double>& rows, int64_t width, double ridge);

struct GaussianDistances {
  double kl = 0;             // KL(a || b), in nats
  double bhattacharyya = 0;  // -log of the overlap
  double wasserstein = 0;    // W2, not squared
};
GaussianDistances distances(const Gaussian& a, const Gaussian& b);

}  // namespace amur
