// Where the elements of Amur's parameters stand in the tensors of a Hugging Face class. Both sides
// are row-major and both store a linear layer as [outputs, inputs], so every parameter is a few
// runs of consecutive elements; what Amur fuses (query, key and value) has one run in each tensor.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/parameter.h"
#include "src/train/huggingface/model_class.h"
#include "src/train/huggingface/safetensors.h"

namespace amur {

// Calls f(first element of the slab, first of the whole tensor, count) for the runs of elements of
// a slab that are consecutive in the whole tensor, in rising order.
template <class F>
void for_each_run(const Slab& slab, const Shape& global, const F& f) {
  if (slab.count.elements() == 0) return;
  int axis = global.dims();  // axes from here on are whole
  while (axis > 0 && slab.count[axis - 1] == global[axis - 1]) --axis;
  const int outer = axis > 0 ? axis - 1 : 0;  // this one and those behind it are one run
  const int64_t run = slab.count.product(outer, global.dims());
  std::array<int64_t, Shape::kMaxDims> at{};
  for (int64_t i = 0; i < slab.count.elements(); i += run) {
    int64_t index = 0;
    for (int d = 0; d < global.dims(); ++d)
      index = index * global[d] + slab.first[d] + at[static_cast<size_t>(d)];
    f(i, index, run);
    for (int d = outer - 1; d >= 0; --d) {
      if (++at[static_cast<size_t>(d)] < slab.count[d]) break;
      at[static_cast<size_t>(d)] = 0;
    }
  }
}

class TensorLayout {
 public:
  explicit TensorLayout(const HuggingFaceEncoder& encoder);

  // Elements of a parameter that are consecutive in one tensor.
  struct Run {
    size_t tensor;  // in tensors()
    int64_t tensor_first;
    int64_t first, count;  // in the parameter
  };
  // F32; without a prefix ("bert.").
  const std::vector<SafetensorsInfo>& tensors() const { return tensors_; }
  // Of the parameter called "<tower>.<name>", which they cover in rising order; none where the
  // class has no place for it.
  const std::vector<Run>& runs(std::string_view name) const;
  // The elements of a tensor that no parameter covers: whole rows in front of those that one does,
  // or behind them, or all.
  struct Rest {
    int64_t first, count;
  };
  Rest rest(size_t tensor) const { return rests_[tensor]; }
  // Elements that parameters cover.
  int64_t covered(size_t tensor) const {
    return tensors_[tensor].elements() - rests_[tensor].count;
  }
  std::optional<size_t> index_of(std::string_view tensor) const;

 private:
  size_t add(const std::string& tensor, std::vector<int64_t> shape);
  // A whole tensor, or `rows` of its rows, which are the first or the last ones.
  void map(const std::string& parameter, const std::string& tensor, std::vector<int64_t> shape,
           int64_t first_row = 0, int64_t rows = -1);
  void map_linear(const std::string& parameter, const std::string& tensor, int64_t outputs,
                  int64_t inputs, bool bias);
  void map_norm(const std::string& parameter, const std::string& tensor);
  struct LayerNames {
    std::string query, key, value, attention_output, attention_norm, up, down, output_norm;
  };
  void map_post_norm_layer(const std::string& layer, const LayerNames& names);
  void bert();
  void distilbert();
  void modernbert();

  const HuggingFaceEncoder& encoder_;
  std::vector<SafetensorsInfo> tensors_;
  std::vector<Rest> rests_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, std::vector<Run>, std::less<>> runs_;
};

// The name of a parameter without its tower: "layers.0.attention.qkv.weight".
std::string_view name_in_tower(std::string_view parameter);

}  // namespace amur
