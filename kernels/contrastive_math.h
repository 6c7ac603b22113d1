// The losses of single pairs, and of single rows and columns of a softmax, for C++ and CUDA.
#pragma once

#include <cmath>

#include "kernels/contrastive.h"
#include "src/core/host_device.h"

namespace amur {

// log(1 + exp(x))
AMUR_HOST_DEVICE inline double softplus(double x) {
  return (x > 0 ? x : 0.0) + std::log1p(std::exp(-std::fabs(x)));
}
AMUR_HOST_DEVICE inline double sigmoid(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

// A right pair of logit x: its loss, and what dL/dx is.
struct RightPair {
  double loss, gradient;
};
AMUR_HOST_DEVICE inline RightPair right_pair(double weight, double x) {
  return {weight * softplus(-x), -weight * sigmoid(-x)};
}

// SoftmaxEnds of logits of type T, by plain pointers.
template <class T>
struct SoftmaxPointers {
  int64_t rows, columns;
  double weight;
  const int64_t* positive;
  const double *positive_logit, *row_sum, *column_sum;
  T *row_maximum, *row_factor, *column_maximum, *column_factor;
  const T* own_maximum;
  double *positive_gradient, *loss, *positive_product, *negatives, *positives;

  AMUR_HOST_DEVICE double largest_of_column(int64_t j) const {
    return static_cast<double>(column_maximum[j]);
  }
};

// The items of a step, each on its own. A sum over rows has its positive apart: where a batch is
// nearly solved 1 - P would cancel.
template <class T>
struct FinishRows {
  SoftmaxPointers<T> p;
  int64_t items() const { return p.rows; }
  AMUR_HOST_DEVICE void operator()(int64_t i) const {
    p.row_factor[i] = 0;
    p.positive_gradient[i] = p.loss[i] = p.positive_product[i] = 0;
    if (p.positive[i] < 0) return;
    const double z = p.positive_logit[i], top = static_cast<double>(p.row_maximum[i]);
    const double negatives = p.row_sum[i], largest = top < z ? z : top;
    const double rest = negatives * std::exp(top - largest);
    const double total = rest + std::exp(z - largest);
    p.loss[i] = p.weight * softplus(top - z + std::log(negatives));
    p.positive_gradient[i] = -p.weight * (rest / total);
    p.positive_product[i] = p.positive_gradient[i] * z;
    p.row_maximum[i] = static_cast<T>(largest);
    p.row_factor[i] = static_cast<T>(p.weight / total);
  }
};
// No two rows have the same positive.
template <class T>
struct RaiseColumns {
  SoftmaxPointers<T> p;
  int64_t items() const { return p.rows; }
  AMUR_HOST_DEVICE void operator()(int64_t i) const {
    if (p.positive[i] < 0) return;
    T& top = p.column_maximum[p.positive[i]];
    const T z = static_cast<T>(p.positive_logit[i]);
    if (top < z) top = z;
  }
};
// The positives of columns of other ranks' rows stay as they are, 0.
template <class T>
struct ColumnTerms {
  SoftmaxPointers<T> p;
  int64_t items() const { return p.columns + p.rows; }
  AMUR_HOST_DEVICE void operator()(int64_t item) const {
    if (item < p.columns) {
      const double own = static_cast<double>(p.own_maximum[item]);
      p.negatives[item] = p.column_sum[item] * std::exp(own - p.largest_of_column(item));
      return;
    }
    const int64_t i = item - p.columns, j = p.positive[i];
    if (j < 0) return;
    const double e = std::exp(p.positive_logit[i] - p.largest_of_column(j));
    p.positives[j] = e < 1e-300 ? 1e-300 : e;  // there is one
  }
};
template <class T>
struct FinishColumns {
  SoftmaxPointers<T> p;
  int64_t items() const { return p.columns + p.rows; }
  AMUR_HOST_DEVICE void operator()(int64_t item) const {
    if (item < p.columns) {
      const double positive = p.positives[item], total = p.negatives[item] + positive;
      p.column_factor[item] = static_cast<T>(positive == 0 ? 0 : p.weight / total);
      return;
    }
    const int64_t i = item - p.columns, j = p.positive[i];
    if (j < 0) return;
    const double z = p.positive_logit[i], negatives = p.negatives[j];
    p.loss[i] += p.weight * softplus(p.largest_of_column(j) - z + std::log(negatives));
    p.positive_gradient[i] -= p.weight * (negatives / (negatives + p.positives[j]));
    p.positive_product[i] = p.positive_gradient[i] * z;
  }
};

// Calls f(items of the step); f(i) is to be called for each i below items().
template <class T, class F>
void with_step(SoftmaxStep step, const SoftmaxEnds& ends, const F& f) {
  const auto of = [](auto view) { return view.defined() ? view.template as<T>() : nullptr; };
  const auto doubles = [](auto view) {
    return view.defined() ? view.template as<double>() : nullptr;
  };
  const int64_t rows = ends.positive.rows();
  const int64_t columns = ends.column_maximum.defined() ? ends.column_maximum.elements() : 0;
  double *terms = doubles(ends.terms), *of_columns = doubles(ends.column_terms);
  const SoftmaxPointers<T> p{rows,
                             columns,
                             ends.weight,
                             ends.positive.as<int64_t>(),
                             doubles(ends.positive_logit),
                             doubles(ends.row_sum),
                             doubles(ends.column_sum),
                             of(ends.row_maximum),
                             of(ends.row_factor),
                             of(ends.column_maximum),
                             of(ends.column_factor),
                             of(ends.own_maximum),
                             doubles(ends.positive_gradient),
                             terms,
                             terms + rows,
                             of_columns,
                             of_columns ? of_columns + columns : nullptr};
  switch (step) {
    case SoftmaxStep::rows:
      return f(FinishRows<T>{p});
    case SoftmaxStep::column_maxima:
      return f(RaiseColumns<T>{p});
    case SoftmaxStep::column_terms:
      return f(ColumnTerms<T>{p});
    case SoftmaxStep::columns:
      return f(FinishColumns<T>{p});
  }
}

}  // namespace amur
