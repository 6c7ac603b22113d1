// Attention by cuDNN for the back end: which calls it takes, plans by shape, work space.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/cudnn_attention.h"

namespace amur::cuda {

// Work space of one call, at most. The backward stores dS: 2 bytes for each sequence, head and pair
// of places of the longest text, rounded up to whole tiles.
inline constexpr size_t kMostCudnnWorkspace = size_t{512} << 20;

// Made once and kept: a plan takes some 0.5 s to build.
class CudnnEngine {
 public:
  // Null where cuDNN does not take this shape, and `problem` says why. The device is current.
  const AttentionPlan* plan(Device device, AttentionDirection direction,
                            const AttentionShape& shape, std::string* problem = nullptr);

  // False where cuDNN does not take this call, and nothing was done.
  bool forward(const PackedSequences& packed, ConstTensorView qkv, double scale, TensorView output,
               TensorView lse, Stream stream);
  bool backward(const PackedSequences& packed, ConstTensorView d_output, ConstTensorView qkv,
                ConstTensorView output, ConstTensorView lse, double scale, TensorView dqkv,
                Stream stream);

 private:
  struct Entry {
    std::unique_ptr<AttentionPlan> plan;
    std::string problem;
  };
  bool run(AttentionDirection direction, const PackedSequences& packed, ConstTensorView qkv,
           AttentionTensors tensors, Stream stream);

  std::mutex mutex_;
  std::map<int, std::unique_ptr<CudnnDevice>> devices_;
  std::map<std::tuple<int, AttentionDirection, AttentionShape>, Entry> plans_;
};

// Of this process. Never destroyed: at the end of the program the driver may be gone already.
CudnnEngine& cudnn_engine();

}  // namespace amur::cuda
