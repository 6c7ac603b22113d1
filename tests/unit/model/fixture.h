// Small encoders and chunks for the tests of the model, all made from counters.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "src/model/encoder.h"

namespace amur::test {

// A chunk whose texts are functions of their sample ids: tokens, lengths and dropout keys.
class TestChunk {
 public:
  struct Text {
    uint64_t sample;
    int32_t length;
  };
  TestChunk(const std::vector<Text>& texts, int64_t vocab);
  const ChunkView& view() const { return view_; }
  std::vector<int32_t> tokens_of(int64_t sequence) const;

 private:
  Tensor ids_, cu_seqlens_, keys_;
  ChunkView view_;
};

// Sets every element of a parameter to a value between -1 and 1 around its natural centre, rounded
// to float, so that models of all precisions start from the same numbers.
void fill_parameters(ParameterSet& parameters, double spread = 0.3);

double get(ConstTensorView view, int64_t i);
void set(TensorView view, int64_t i, double value);
// Standard normals from a counter.
Tensor random_tensor(Shape shape, DType dtype, uint64_t seed);
std::vector<double> to_doubles(ConstTensorView view);
// ||a - b|| / ||b||
double relative_error(const std::vector<double>& a, const std::vector<double>& b);

// Parameters with sinks, the two stacks and a context: what a trainer would hold.
class Bench {
 public:
  explicit Bench(DType dtype) : dtype_(dtype) {}

  // Allocates and fills the parameters and gives each a zeroed sink with this scale.
  void start(double sink_scale = 1, double spread = 0.3);
  void zero_sinks();
  Context context(const TestChunk& chunk, bool training = true, bool keep = true);
  DType parameter_type() const { return parameter_dtype(dtype_); }

  ParameterSet parameters;
  SavedTensors saved, scratch;
  std::vector<Tensor> sinks;

 private:
  DType dtype_;
};

class TestEncoder : public Bench {
 public:
  TestEncoder(const ModelConfig& config, DType dtype, double sink_scale = 1, double spread = 0.3)
      : Bench(dtype), encoder(config, "encoder", parameters) {
    start(sink_scale, spread);
  }
  Tensor forward(const TestChunk& chunk, bool training = true, bool keep = true);
  // From the gradient `weights_for(chunk)`.
  void backward(const TestChunk& chunk, bool training = true);
  // sum_s w_s . h_s, with weights that depend on the sample alone.
  double loss(const TestChunk& chunk, bool training = true);
  Tensor weights_for(const TestChunk& chunk) const;

  Encoder encoder;
};

// The largest error of the sinks against central differences of `loss`, over the parameters, along
// `directions` directions of +-1 each: |difference| / max(||g||, 1e-3 sqrt(n) R), R the RMS of all
// gradients. A tensor declared to have zero gradient is compared with the floor alone.
// `worst`, where given, names the parameter.
double gradient_error(Bench& bench, const std::function<double()>& loss, double step,
                      int directions = 1, std::string* worst = nullptr);
// The same for an input x with gradient dx.
double input_gradient_error(TensorView x, ConstTensorView dx, const std::function<double()>& loss,
                            double step);

// 2 layers, width 8, 2 heads of 4: seconds for thousands of forwards.
ModelConfig tiny_config();
// Uneven lengths, one text of a single token.
TestChunk tiny_chunk(const ModelConfig& config);

}  // namespace amur::test
