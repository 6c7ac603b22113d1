// The operations of a GPU back end. Each means what the function of its name in kernels/ says, and
// is called by that function after its checks, never with nothing to do; tensors lie on the GPU.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention_engine.h"
#include "kernels/contrastive.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/optimizer_update.h"
#include "kernels/packed.h"
#include "kernels/product.h"
#include "src/core/gpu.h"
#include "src/core/tensor.h"

namespace amur {

class DeviceKernels : public DeviceBackend {
 public:
  // kernels/optimizer_update.h
  virtual void update_parameters(std::span<const ParameterUpdate> updates, Stream stream) = 0;
  virtual void sign_update_by_row(ConstTensorView momentum, double rate, double rms_floor,
                                  double decay, TensorView theta,
                                  const StochasticRounding& rounding, Stream stream) = 0;
  virtual void sign_update_of_rows(ConstTensorView momentum, std::span<const int64_t> rows,
                                   std::span<const double> rates, double rms_floor, double decay,
                                   TensorView theta, const StochasticRounding& rounding,
                                   Stream stream) = 0;

  // kernels/activation.h
  virtual void activation_forward(ActivationKind kind, ConstTensorView u, TensorView y,
                                  Stream stream) = 0;
  virtual void activation_backward(ActivationKind kind, ConstTensorView dy, ConstTensorView u,
                                   TensorView du, const ActivationExtras& also, Stream stream) = 0;

  // kernels/norm.h; statistics_width is between 1 and the width
  virtual void norm_forward(NormKind kind, ConstTensorView x, ConstTensorView gain,
                            ConstTensorView bias, double eps, TensorView y, TensorView mean,
                            TensorView rstd, int64_t statistics_width, Stream stream) = 0;
  virtual void add_norm_forward(const PackedSequences& packed, const DropoutSite& site,
                                ConstTensorView x, ConstTensorView residual, TensorView y,
                                NormKind kind, ConstTensorView gain, ConstTensorView bias,
                                double eps, TensorView n, TensorView mean, TensorView rstd,
                                int64_t statistics_width, Stream stream) = 0;
  virtual void norm_backward(NormKind kind, ConstTensorView dy, ConstTensorView x,
                             ConstTensorView gain, ConstTensorView mean, ConstTensorView rstd,
                             ConstTensorView residual, TensorView dx, double sink_scale,
                             TensorView gain_sink, TensorView bias_sink, int64_t statistics_width,
                             Stream stream) = 0;

  // kernels/elementwise.h; the one that returns something waits for it
  virtual void cast(ConstTensorView from, TensorView to, Stream stream) = 0;
  virtual void axpy(double alpha, ConstTensorView x, TensorView y, Stream stream) = 0;
  virtual void scale(double alpha, std::span<const TensorView> tensors, Stream stream) = 0;
  virtual void add_bias(ConstTensorView bias, TensorView y, Stream stream) = 0;
  virtual void accumulate_column_sums(ConstTensorView dy, std::span<const ColumnSink> parts,
                                      Stream stream) = 0;
  virtual void join(std::span<const ConstTensorView> parts, TensorView row, Stream stream) = 0;
  virtual std::vector<double> sums_of_squares(std::span<const ConstTensorView> tensors) = 0;
  virtual void mark_not_finite(std::span<const ConstTensorView> tensors, TensorView flags,
                               Stream stream) = 0;
  // y = residual + dropout(x), forward and backward; residual may be undefined.
  virtual void dropout_add(const PackedSequences& packed, const DropoutSite& site,
                           ConstTensorView x, ConstTensorView residual, TensorView y,
                           Stream stream) = 0;
  virtual void dropout_backward_sums(const PackedSequences& packed, const DropoutSite& site,
                                     ConstTensorView dy, TensorView dx, const ColumnSink& sums,
                                     Stream stream) = 0;
  virtual void gate_forward(ConstTensorView gate, ConstTensorView x, TensorView y,
                            Stream stream) = 0;
  virtual void gate_backward(ConstTensorView gate, ConstTensorView dy, ConstTensorView x,
                             double sink_scale, TensorView y, TensorView dx, TensorView sink,
                             Stream stream) = 0;

  // kernels/gemm.h; no dimension is 0; bias undefined, or alpha 1 and beta 0
  virtual void gemm(Transpose transpose_a, Transpose transpose_b, double alpha, ConstTensorView a,
                    ConstTensorView b, ConstTensorView bias, double beta, TensorView c,
                    Stream stream) = 0;
  virtual std::map<std::string, std::string> measure_products(
      std::span<const Product> products, const std::map<std::string, std::string>& known,
      Device device) = 0;
  virtual void use_product_choices(const std::map<std::string, std::string>& choices) = 0;

  // kernels/embedding.h; rows.whole is not read, nor are ids checked: one outside the rows that are
  // here counts as another rank's
  virtual void embedding_forward(const PackedSequences& packed, ConstTensorView ids,
                                 ConstTensorView tokens, ConstTensorView positions, TensorView y,
                                 TableRows rows, Stream stream) = 0;
  virtual void embedding_backward(const PackedSequences& packed, ConstTensorView ids,
                                  ConstTensorView dy, double sink_scale, TensorView tokens_sink,
                                  TensorView positions_sink, TableRows rows, Stream stream) = 0;
  virtual void add_sinusoidal_positions(const PackedSequences& packed, TensorView y,
                                        Stream stream) = 0;
  virtual void pooling_forward(PoolingKind kind, const PackedSequences& packed, ConstTensorView x,
                               TensorView h, Stream stream) = 0;
  virtual void pooling_backward(PoolingKind kind, const PackedSequences& packed, ConstTensorView dh,
                                TensorView dx, Stream stream) = 0;
  virtual void normalise_forward(ConstTensorView h, TensorView z, TensorView norm,
                                 Stream stream) = 0;
  virtual void normalise_backward(ConstTensorView dz, ConstTensorView z, ConstTensorView norm,
                                  TensorView dh, Stream stream) = 0;

  // kernels/rows.h: to[to_index[i], :] = from[from_index[i], :], where the index that is empty, one
  // of the two, is i itself
  virtual void move_rows(ConstTensorView from, std::span<const int32_t> from_index,
                         std::span<const int32_t> to_index, TensorView to, Stream stream) = 0;
  // The others; the two that return a value wait for it.
  virtual void scale_rows(TensorView x, std::span<const int64_t> rows,
                          std::span<const double> factors, Stream stream) = 0;
  virtual double sum_of_squares_of_rows(ConstTensorView x, std::span<const int64_t> rows) = 0;
  virtual bool all_finite_in_rows(ConstTensorView x, std::span<const int64_t> rows) = 0;

  // kernels/attention.h; a window is that of the longest sequence where all is seen
  virtual void attention_forward(const PackedSequences& packed, ConstTensorView qkv, double scale,
                                 const DropoutSite& dropout, TensorView o, TensorView lse,
                                 int64_t window, Stream stream) = 0;
  virtual void attention_backward(const PackedSequences& packed, ConstTensorView d_output,
                                  ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                                  double scale, const DropoutSite& dropout, TensorView dqkv,
                                  int64_t window, Stream stream) = 0;
  // kernels/attention_engine.h
  virtual AttentionEngines use_attention_engines(const AttentionEngines& engines) = 0;
  virtual std::string other_attention_library() const = 0;
  // Why cuDNN does not take `sequences` texts of the kind; empty where it does.
  virtual std::string cudnn_problem(const AttentionKind& kind, int64_t sequences,
                                    Device device) = 0;
  virtual void rotary(const PackedSequences& packed, double base, int64_t period, bool inverse,
                      TensorView qkv, Stream stream) = 0;

  // kernels/contrastive.h
  virtual void contrastive_statistics(const LogitTile& tile, const LogSums& rows,
                                      const LogSums& columns, TensorView positive_logit,
                                      TensorView masked, Stream stream) = 0;
  virtual void merge_log_sums(const LogSums& sums, Stream stream) = 0;
  virtual void contrastive_softmax_gradient(const LogitTile& tile, ConstTensorView row_maximum,
                                            ConstTensorView row_factor,
                                            ConstTensorView column_maximum,
                                            ConstTensorView column_factor,
                                            ConstTensorView positive_gradient, TensorView sum,
                                            TensorView gradient, Stream stream) = 0;
  virtual void contrastive_sigmoid(const LogitTile& tile, double bias, double weight,
                                   TensorView sums, TensorView gradient, Stream stream) = 0;
  virtual std::vector<double> sums_of_parts(ConstTensorView parts, Stream stream) = 0;
  virtual void softmax_step(SoftmaxStep step, const SoftmaxEnds& ends, Stream stream) = 0;
};

// Of the GPUs in use. The interface check of src/core/gpu.cpp covers this header.
inline DeviceKernels& device_kernels() {
  return static_cast<DeviceKernels&>(gpu_backend());
}

}  // namespace amur
