#include "tests/unit/growth/fixture.h"

#include <algorithm>
#include <cmath>

namespace amur::test {

ModelConfig small_config() {
  ModelConfig c;
  c.layers = 2;
  c.hidden = 24;
  c.heads = 4;
  c.head_size = 6;
  c.ffn = 40;
  c.projection = 10;
  c.max_length = 12;
  c.vocab = 37;
  c.norm_eps = 1e-3;
  c.dropout = 0;
  return c;
}

TestChunk probe_chunk(const ModelConfig& config, int which) {
  const uint64_t first = 1 + 5 * static_cast<uint64_t>(which);
  return TestChunk({{first, 3}, {first + 1, 1}, {first + 2, 12}, {first + 3, 7}, {first + 4, 5}},
                   config.vocab);
}

Config config_of(const ModelConfig& model) {
  Config config;
  config.model = model;
  return config;
}

Precision precision_of(DType dtype) {
  return dtype == DType::f64 ? Precision::fp64 : Precision::fp32;
}

namespace {

Slab whole(const Shape& shape) {
  return boxes_of(shape, shape.elements()).front();
}

GrowthBlock whole_block(const Parameter* from, const Parameter& to) {
  return {whole(to.global_shape()), from ? whole(from->global_shape()) : Slab{Shape{0}, Shape{0}}};
}

}  // namespace

Tensor cut(ConstTensorView whole, const Slab& slab) {
  Tensor part(slab.count, whole.dtype());
  if (slab.count.elements() == 0) return part;
  for_each_element(slab, whole.shape(), [&](int64_t local, int64_t index) {
    test::set(part, local, test::get(whole, index));
  });
  return part;
}

double rms_by_boxes(ConstTensorView whole) {
  std::vector<double> sums;
  for (const Slab& box : statistics_boxes(whole.shape()))
    sums.push_back(sum_of_squares_of(cut(whole, box)));
  return root_mean_square_of(sums, whole.elements());
}

void widen_moment(const Growth& growth, const GrowthRule& rule, const Parameter* from,
                  ConstTensorView old, int order, const Parameter& to, TensorView state) {
  growth.widen_moment_block(rule, from, whole_block(from, to), old, order, to, state);
}

TestModel::TestModel(const ModelConfig& model_config, DType dtype)
    : config(config_of(model_config)), model(config, precision_of(dtype)), bench_(dtype) {
  fill_parameters(model.parameters());
}

TestModel::TestModel(const Growth& growth, TestModel& from)
    : TestModel(growth.to(), from.model.dtype()) {
  widen_outline(growth, from.model, model);
  for (Parameter& p : model.parameters()) {
    const GrowthRule rule = growth.rule(p, from.model.parameters());
    const Parameter* source = from.model.parameters().find(rule.source);
    const ConstTensorView old = source ? source->value : ConstTensorView();
    const double rms = source ? rms_by_boxes(old) : 0;
    growth.widen_block(rule, source, rms, whole_block(source, p), old, p, p.value);
  }
}

TestModel::TestModel(TestModel& whole, Communicator& tp)
    : config(whole.config),
      model(config, precision_of(whole.model.dtype()), &tp),
      bench_(whole.model.dtype()) {
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    Parameter& p = model.parameters()[i];
    const ConstTensorView values = whole.model.parameters()[i].value;
    for_each_element(slab_of(p, tp.rank(), tp.size()), p.global_shape(),
                     [&](int64_t to, int64_t at) { set(p.value, to, get(values, at)); });
  }
  model.set_constants(whole.model.constants());
}

Context TestModel::context(const TestChunk& chunk, bool keep) {
  Context c = bench_.context(chunk, false, keep);
  c.tp = model.tp();
  return c;
}

std::vector<double> TestModel::forward(const TestChunk& chunk, int tower) {
  Tensor h({chunk.view().sequences(), model.embedding_size()}, model.parameters_dtype());
  model.tower(tower).forward(context(chunk, false), h);
  return to_doubles(h);
}

void TestModel::backward(const TestChunk& chunk) {
  sinks.clear();
  for (Parameter& p : model.parameters()) {
    sinks.push_back(Tensor::zeros(p.value.shape(), p.value.dtype()));
    p.sink = sinks.back();
    p.sink_scale = 1;
  }
  const Shape shape = {chunk.view().sequences(), model.embedding_size()};
  const Context context = this->context(chunk, true);
  Tensor h(shape, model.parameters_dtype());
  model.tower(0).forward(context, h);
  const Tensor weights = random_tensor(shape, model.parameters_dtype(), 77);
  Tensor dh(shape, model.parameters_dtype());
  copy(dh, weights);
  model.tower(0).backward(context, dh);
}

TestModel grow(TestModel& from, const GrowthOptions& options) {
  return {Growth(from.config.model, options), from};
}

std::vector<double> unit_rows(const std::vector<double>& h, int64_t width) {
  std::vector<double> z = h;
  for (size_t row = 0; row < h.size(); row += static_cast<size_t>(width)) {
    double squares = 0;
    for (int64_t k = 0; k < width; ++k) squares += std::pow(h[row + static_cast<size_t>(k)], 2);
    for (int64_t k = 0; k < width; ++k) z[row + static_cast<size_t>(k)] /= std::sqrt(squares);
  }
  return z;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    largest = d <= largest ? largest : d;
  }
  return largest;
}

double cosine_difference(const std::vector<double>& a, int64_t a_width,
                         const std::vector<double>& b, int64_t b_width) {
  const auto cosines = [](const std::vector<double>& h, int64_t width) {
    const std::vector<double> z = unit_rows(h, width);
    const int64_t rows = static_cast<int64_t>(h.size()) / width;
    std::vector<double> s;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < width; ++k)
          sum += z[static_cast<size_t>(i * width + k)] * z[static_cast<size_t>(j * width + k)];
        s.push_back(sum);
      }
    return s;
  };
  return largest_difference(cosines(a, a_width), cosines(b, b_width));
}

}  // namespace amur::test
