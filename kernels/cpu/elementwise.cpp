// Compiled once per instruction set.
#include "kernels/cpu/elementwise.h"

#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace amur::cpu {
namespace AMUR_ISA {

constexpr int64_t kGrain = 16384;     // elements a piece of work
constexpr int64_t kSumBlock = 65536;  // elements of a partial sum

// f(Span) over n elements, in parallel.
template <class A, class F>
void for_all(int64_t n, const F& f) {
  constexpr int64_t lanes = kLanes<A>;
  parallel_for((n + lanes - 1) / lanes, kGrain / lanes, [&](int64_t first, int64_t last) {
    const int64_t end = std::min(n, last * lanes);
    int64_t i = first * lanes;
    for (; i + lanes <= end; i += lanes) f(Whole{i});
    if (i < end) f(Partial{i, end - i});
  });
}

template <class T, class P>
void axpy(int64_t n, P alpha, const T* x, T* y) {
  for_all<P>(n, [=](auto at) { at.store_to(y, at.load_from(y) + alpha * at.load_from(x)); });
}

template <class T, class P>
void scale(int64_t n, P alpha, T* x) {
  for_all<P>(n, [=](auto at) { at.store_to(x, alpha * at.load_from(x)); });
}

template <class T>
void add(int64_t n, const T* a, const T* b, T* y) {
  for_all<AccumulateType<T>>(n,
                             [=](auto at) { at.store_to(y, at.load_from(a) + at.load_from(b)); });
}

template <class T, class P>
void add_bias(int64_t rows, int64_t width, const P* bias, T* y) {
  parallel_for(rows, std::max<int64_t>(1, kGrain / width), [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      T* row = y + t * width;
      for_each_vector<P>(
          width, [&](auto at) { at.store_to(row, at.load_from(row) + at.load_from(bias)); });
    }
  });
}

template <class T, class P>
void column_sums(int64_t rows, int64_t width, P alpha, const T* dy, P* partial, P* sink) {
  const int64_t blocks = (rows + kColumnSumRows - 1) / kColumnSumRows;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kColumnSumRows, end = std::min(rows, begin + kColumnSumRows);
      constexpr int64_t tile = 4 * kLanes<P>;  // columns whose sums stay in registers
      int64_t c = 0;
      for (; c + tile <= width; c += tile) {
        Vec<P> sum[4] = {};
        for (int64_t t = begin; t < end; ++t)
          for (int i = 0; i < 4; ++i) sum[i] += load(dy + t * width + c + i * kLanes<P>);
        for (int i = 0; i < 4; ++i) store(partial + b * width + c + i * kLanes<P>, sum[i]);
      }
      for_each_vector<P>(width - c, [&](auto at) {
        Vec<P> sum{};
        for (int64_t t = begin; t < end; ++t) sum += at.load_from(dy + t * width + c);
        at.store_to(partial + b * width + c, sum);
      });
    }
  });
  for_each_vector<P>(width, [&](auto at) {
    Vec<P> sum{};
    for (int64_t b = 0; b < blocks; ++b) sum += at.load_from(partial + b * width);
    at.store_to(sink, at.load_from(sink) + alpha * sum);
  });
}

// Sum of f(i) in double over n elements, in a fixed order.
template <class F>
double sum_of(int64_t n, const F& f) {
  const int64_t blocks = (n + kSumBlock - 1) / kSumBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kSumBlock, end = std::min(n, begin + kSumBlock);
      constexpr int64_t width = 16;
      double lane[width] = {};
      int64_t i = begin;
      for (; i + width <= end; i += width)
        for (int64_t l = 0; l < width; ++l) lane[l] += f(i + l);
      for (int64_t l = 0; i < end; ++i, ++l) lane[l] += f(i);
      double sum = 0;
      for (double v : lane) sum += v;
      partial[static_cast<size_t>(b)] = sum;
    }
  });
  double sum = 0;
  for (double v : partial) sum += v;
  return sum;
}

template <class T>
double sum_of_squares(int64_t n, const T* x) {
  return sum_of(n, [x](int64_t i) {
    const double v = static_cast<double>(x[i]);
    return v * v;
  });
}

template <class T, class P>
void gate(int64_t n, const P* gate, const T* x, T* y) {
  const P g = *gate;
  for_all<P>(n, [=](auto at) { at.store_to(y, g * at.load_from(y) + (1 - g) * at.load_from(x)); });
}

template <class T, class P>
double gate_backward(int64_t n, const P* gate, const T* dy, const T* x, T* y, T* dx) {
  const double sum = sum_of(n, [=](int64_t i) {
    return static_cast<double>(dy[i]) * (static_cast<double>(y[i]) - static_cast<double>(x[i]));
  });
  const P g = *gate;
  for_all<P>(n, [=](auto at) {
    const Vec<P> d = at.load_from(dy);
    at.store_to(y, g * d);
    at.store_to(dx, (1 - g) * d);
  });
  return sum;
}

template <class T>
bool all_finite(int64_t n, const T* x) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  constexpr Bits exponent = sizeof(T) == 2   ? Bits(0x7f80u)
                            : sizeof(T) == 4 ? Bits(0x7f800000u)
                                             : Bits(0x7ff0000000000000u);
  const int64_t blocks = (n + kSumBlock - 1) / kSumBlock;
  std::vector<uint8_t> bad(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      Bits found = 0;
      for (int64_t i = b * kSumBlock; i < std::min(n, (b + 1) * kSumBlock); ++i)
        found |= static_cast<Bits>((std::bit_cast<Bits>(x[i]) & exponent) == exponent);
      bad[static_cast<size_t>(b)] = static_cast<uint8_t>(found);
    }
  });
  return std::find(bad.begin(), bad.end(), 1) == bad.end();
}

template <class T>
void to_f32(int64_t n, const T* from, float* to) {
  if constexpr (std::is_same_v<T, double>) {
    parallel_for(n, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) to[i] = static_cast<float>(from[i]);
    });
  } else {
    for_all<float>(n, [=](auto at) { at.store_to(to, at.load_from(from)); });
  }
}
template <class T>
void from_f32(int64_t n, const float* from, T* to) {
  if constexpr (std::is_same_v<T, double>) {
    parallel_for(n, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) to[i] = from[i];
    });
  } else {
    for_all<float>(n, [=](auto at) { at.store_to(to, at.load_from(from)); });
  }
}

template <class T>
constexpr ElementwiseKernels<T> elementwise_kernels = {
    axpy,          scale,          add,        add_bias, column_sums, gate,
    gate_backward, sum_of_squares, all_finite, to_f32,   from_f32};

}  // namespace AMUR_ISA

AMUR_KERNEL_TABLE(ElementwiseKernels<float>, AMUR_ISA::elementwise_kernels<float>)
AMUR_KERNEL_TABLE(ElementwiseKernels<bf16>, AMUR_ISA::elementwise_kernels<bf16>)
AMUR_KERNEL_TABLE(ElementwiseKernels<double>, AMUR_ISA::elementwise_kernels<double>)

}  // namespace amur::cpu
