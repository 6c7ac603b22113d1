#include "kernels/embedding.h"

#include <cmath>
#include <map>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/embedding.h"
#include "kernels/device_kernels.h"
#include "kernels/elementwise.h"
#include "kernels/positions_math.h"
#include "kernels/rows.h"

namespace amur {
namespace {

// Every id lies in the whole table, of which `held` rows are here. Those on a GPU are not looked
// at.
void require_ids(const char* op, ConstTensorView ids, int64_t tokens, TableRows rows,
                 int64_t held) {
  if (rows.whole < 0) rows.whole = held;
  AMUR_CHECK(rows.first >= 0 && rows.first + held <= rows.whole,
             "{}: rows {} to {} of a table of {}", op, rows.first, rows.first + held, rows.whole);
  require_matrix(op, "ids", ids, tokens, 1, DType::i32);
  if (on_gpu(ids)) return;
  const int32_t* id = ids.as<int32_t>();
  for (int64_t t = 0; t < tokens; ++t)
    AMUR_CHECK(id[t] >= 0 && id[t] < rows.whole, "{}: id {} of token {}, the table has {} rows", op,
               id[t], t, rows.whole);
}

// A table [count, width] of tokens or positions, or its sink.
void require_table(const char* op, const char* name, ConstTensorView table, int64_t width,
                   DType activation) {
  const bool rounded = table.dtype() == DType::bf16 && activation != DType::f64;
  require_matrix(op, name, table, table.rows(), width,
                 rounded ? DType::bf16 : parameter_dtype(activation));
}

// sink[rows[i], :] += sums[i, :], rounded once.
void add_to_rows(ConstTensorView sums, std::span<const int32_t> rows, TensorView sink) {
  Tensor before(sums.shape(), DType::bf16), after(sums.shape(), DType::f32);
  gather_rows(sink, rows, before);
  cast(before, after);
  axpy(1, sums, after);
  cast(after, before);
  scatter_rows(before, rows, sink);
}

// embedding_backward into sinks in bf16, on the CPU: the sums of the rows that the call touches are
// made in f32.
void backward_rounded(const PackedSequences& packed, ConstTensorView ids, ConstTensorView dy,
                      double sink_scale, TensorView tokens_sink, TensorView positions_sink,
                      TableRows rows) {
  const int64_t width = dy.columns();
  if (tokens_sink.defined()) {
    std::map<int32_t, int32_t> place;  // of the rows that are here, in ascending order
    const std::span<const int32_t> id(ids.as<int32_t>(), static_cast<size_t>(dy.rows()));
    for (const int32_t i : id)
      if (i >= rows.first && i < rows.first + tokens_sink.rows())
        place[static_cast<int32_t>(i - rows.first)] = 0;
    std::vector<int32_t> touched;
    for (auto& [row, at] : place) {
      at = static_cast<int32_t>(touched.size());
      touched.push_back(row);
    }
    const auto count = static_cast<int64_t>(touched.size());
    Tensor sums = Tensor::zeros({count, width}, DType::f32);
    Tensor places(ids.shape(), DType::i32);
    for (size_t t = 0; t < id.size(); ++t) {
      const auto found = place.find(static_cast<int32_t>(id[t] - rows.first));
      places.as<int32_t>()[t] = found == place.end() ? static_cast<int32_t>(count) : found->second;
    }
    embedding_backward(packed, places, dy, sink_scale, sums, {}, {0, count + 1});
    if (count > 0) add_to_rows(sums, touched, tokens_sink);
  }
  if (positions_sink.defined()) {
    Tensor sums = Tensor::zeros({packed.longest, width}, DType::f32);
    embedding_backward(packed, ids, dy, sink_scale, {}, sums, {});
    std::vector<int32_t> touched(static_cast<size_t>(packed.longest));
    std::iota(touched.begin(), touched.end(), 0);
    add_to_rows(sums, touched, positions_sink);
  }
}

void require_pooling(const char* op, const PackedSequences& packed, ConstTensorView x,
                     ConstTensorView h) {
  require_device(op, {x, h, packed.cu_seqlens});
  require_packed(op, packed, x.rows());
  require_matrix(op, "embeddings", h, packed.sequences(), x.columns(), parameter_dtype(x.dtype()));
}

void require_normalised(const char* op, ConstTensorView a, ConstTensorView b,
                        ConstTensorView norm) {
  require_device(op, {a, b, norm});
  require_matrix(op, "result", b, a.rows(), a.columns(), a.dtype());
  require_matrix(op, "norm", norm, a.rows(), 1, a.dtype());
}

}  // namespace

void embedding_forward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView tokens,
                       ConstTensorView positions, TensorView y, TableRows rows, Stream stream) {
  const char* op = "embedding_forward";
  require_device(op, {y, ids, tokens, positions, packed.cu_seqlens});
  const int64_t width = y.columns();
  require_packed(op, packed, y.rows());
  require_table(op, "tokens", tokens, width, y.dtype());
  require_ids(op, ids, y.rows(), rows, tokens.rows());
  if (positions.defined()) {
    require_table(op, "positions", positions, width, y.dtype());
    require_dtype(op, "positions", positions, tokens.dtype());
    AMUR_CHECK(packed.longest <= positions.rows(), "{}: {} tokens, {} positions", op,
               packed.longest, positions.rows());
  }
  if (y.elements() == 0) return;
  if (on_gpu(y))
    return device_kernels().embedding_forward(packed, ids, tokens, positions, y, rows, stream);
  dispatch_table(y.dtype(), tokens.dtype(), op, [&]<class T, class P>() {
    cpu::kernels<cpu::LookupKernels<T, P>>().lookup(
        packed.sequences(), packed.cu_seqlens.as<int32_t>(), width, ids.as<int32_t>(),
        tokens.as<P>(), rows.first, tokens.rows(),
        positions.defined() ? positions.as<P>() : nullptr, y.as<T>());
  });
}

void embedding_backward(const PackedSequences& packed, ConstTensorView ids, ConstTensorView dy,
                        double sink_scale, TensorView tokens_sink, TensorView positions_sink,
                        TableRows rows, Stream stream) {
  const char* op = "embedding_backward";
  require_device(op, {dy, ids, tokens_sink, positions_sink, packed.cu_seqlens});
  const int64_t width = dy.columns();
  require_packed(op, packed, dy.rows());
  if (tokens_sink.defined()) {
    require_table(op, "tokens_sink", tokens_sink, width, dy.dtype());
    require_ids(op, ids, dy.rows(), rows, tokens_sink.rows());
  }
  if (positions_sink.defined()) {
    require_table(op, "positions_sink", positions_sink, width, dy.dtype());
    if (tokens_sink.defined())
      require_dtype(op, "positions_sink", positions_sink, tokens_sink.dtype());
    AMUR_CHECK(packed.longest <= positions_sink.rows(), "{}: {} tokens, {} positions", op,
               packed.longest, positions_sink.rows());
  }
  if (dy.elements() == 0) return;
  if (on_gpu(dy))
    return device_kernels().embedding_backward(packed, ids, dy, sink_scale, tokens_sink,
                                               positions_sink, rows, stream);
  if ((tokens_sink.defined() ? tokens_sink : positions_sink).dtype() == DType::bf16)
    return backward_rounded(packed, ids, dy, sink_scale, tokens_sink, positions_sink, rows);
  dispatch_float(dy.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    cpu::kernels<cpu::EmbeddingKernels<T>>().scatter(
        packed.sequences(), packed.cu_seqlens.as<int32_t>(), width, ids.as<int32_t>(), dy.as<T>(),
        static_cast<P>(sink_scale), tokens_sink.defined() ? tokens_sink.as<P>() : nullptr,
        rows.first, tokens_sink.defined() ? tokens_sink.rows() : 0,
        positions_sink.defined() ? positions_sink.as<P>() : nullptr);
  });
}

void add_sinusoidal_positions(const PackedSequences& packed, TensorView y, Stream stream) {
  const char* op = "add_sinusoidal_positions";
  require_device(op, {y, packed.cu_seqlens});
  require_packed(op, packed, y.rows());
  if (y.elements() == 0) return;
  if (on_gpu(y)) return device_kernels().add_sinusoidal_positions(packed, y, stream);
  const int64_t width = y.columns();
  Tensor table({packed.longest, width}, parameter_dtype(y.dtype()), y.device());
  dispatch_float(y.dtype(), op, [&]<class T>() {
    using P = AccumulateType<T>;
    for (int64_t j = 0; j < width; ++j) {
      const double frequency = sinusoidal_frequency(j, width);
      for (int64_t p = 0; p < packed.longest; ++p) {
        const double angle = static_cast<double>(p) * frequency;
        table.as<P>()[p * width + j] =
            static_cast<P>(j % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
    }
    cpu::kernels<cpu::EmbeddingKernels<T>>().add_positions(
        packed.sequences(), packed.cu_seqlens.as<int32_t>(), width, table.as<P>(), y.as<T>());
  });
}

void pooling_forward(PoolingKind kind, const PackedSequences& packed, ConstTensorView x,
                     TensorView h, Stream stream) {
  const char* op = "pooling_forward";
  require_pooling(op, packed, x, h);
  if (h.elements() == 0) return;
  if (on_gpu(x)) return device_kernels().pooling_forward(kind, packed, x, h, stream);
  dispatch_float(x.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::EmbeddingKernels<T>>().pool(kind, packed.sequences(),
                                                  packed.cu_seqlens.as<int32_t>(), x.columns(),
                                                  x.as<T>(), h.as<AccumulateType<T>>());
  });
}

void pooling_backward(PoolingKind kind, const PackedSequences& packed, ConstTensorView dh,
                      TensorView dx, Stream stream) {
  const char* op = "pooling_backward";
  require_pooling(op, packed, dx, dh);
  if (dh.elements() == 0) return;
  if (on_gpu(dx)) return device_kernels().pooling_backward(kind, packed, dh, dx, stream);
  dispatch_float(dx.dtype(), op, [&]<class T>() {
    cpu::kernels<cpu::EmbeddingKernels<T>>().unpool(kind, packed.sequences(),
                                                    packed.cu_seqlens.as<int32_t>(), dx.columns(),
                                                    dh.as<AccumulateType<T>>(), dx.as<T>());
  });
}

void normalise_forward(ConstTensorView h, TensorView z, TensorView norm, Stream stream) {
  const char* op = "normalise_forward";
  require_normalised(op, h, z, norm);
  if (h.elements() == 0) return;
  if (on_gpu(h)) return device_kernels().normalise_forward(h, z, norm, stream);
  dispatch_f32_f64(h.dtype(), op, [&]<class P>() {
    cpu::kernels<cpu::NormaliseKernels<P>>().forward(h.rows(), h.columns(), h.as<P>(), z.as<P>(),
                                                     norm.as<P>());
  });
}

void normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm, TensorView dh,
                        Stream stream) {
  const char* op = "normalise_backward";
  require_normalised(op, dz, dh, norm);
  require_matrix(op, "z", z, dz.rows(), dz.columns(), dz.dtype());
  if (dz.elements() == 0) return;
  if (on_gpu(dz)) return device_kernels().normalise_backward(dz, z, norm, dh, stream);
  dispatch_f32_f64(dz.dtype(), op, [&]<class P>() {
    cpu::kernels<cpu::NormaliseKernels<P>>().backward(dz.rows(), dz.columns(), dz.as<P>(),
                                                      z.as<P>(), norm.as<P>(), dh.as<P>());
  });
}

}  // namespace amur
