// Attention in bf16 by cuDNN's graph interface: packed sequences, whole texts, no dropout.
//
// The library is looked for at run time. A graph (what is computed, for which shape) becomes a plan
// (a compiled kernel with its work space) once, and is run by the plan. Building one needs no GPU,
// only its properties: tests build for GPUs that are not there.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernels/attention_engine.h"
#include "src/core/host_device.h"

namespace amur::cuda {

// "cuDNN 9.19.0", or why it cannot be used; asks no device.
struct CudnnSearch {
  std::string text, problem;
  bool usable() const { return problem.empty(); }
};
const CudnnSearch& find_cudnn();

// cuDNN has no kernel for what was asked, or none that gives the same bits twice.
class CudnnRefusal : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What a plan is built for.
struct AttentionShape {
  int64_t sequences = 0, longest = 0;  // at most; those left over are of length 0
  int64_t heads = 0, head_size = 0;
  auto operator<=>(const AttentionShape&) const = default;
};

// The device of plans.
class CudnnDevice {
 public:
  // The GPU that is current in this thread; throws CudnnRefusal.
  CudnnDevice();
  // None: `properties` is cuDNN's JSON of a device. Its plans cannot be run.
  explicit CudnnDevice(const std::string& properties);
  ~CudnnDevice();
  CudnnDevice(const CudnnDevice&) = delete;
  CudnnDevice& operator=(const CudnnDevice&) = delete;

 private:
  friend class AttentionPlan;
  void* handle_ = nullptr;
  void* properties_ = nullptr;
};

// Addresses on the GPU. Of qkv and dqkv [T, 3, H, hd], of the others [T, H, hd] and [T, H].
struct AttentionTensors {
  const void* qkv = nullptr;
  // Written by the forward, read by the backward.
  void* output = nullptr;
  float* lse = nullptr;
  // The backward's alone; row_sums [T, H] is work space.
  const void* d_output = nullptr;
  void* dqkv = nullptr;
  float* row_sums = nullptr;
  // [sequences + 1]: a sequence's first element in qkv, in the output, in lse.
  const int64_t *qkv_offsets = nullptr, *output_offsets = nullptr, *lse_offsets = nullptr;
  const int32_t* lengths = nullptr;  // [sequences]
  float scale = 1;
};

// Where sequence s begins and how long it is; cu [sequences + 1] as in PackedSequences. A plan is
// for more sequences than there are: those left over are empty, behind the last token.
struct AttentionPlaces {
  int64_t sequences = 0, planned = 0;
  int64_t heads = 0, head_size = 0;
  const int32_t* cu = nullptr;
  int64_t *qkv_offsets = nullptr, *output_offsets = nullptr, *lse_offsets = nullptr;
  int32_t* lengths = nullptr;

  // 0 <= s <= planned
  AMUR_HOST_DEVICE void set(int64_t s) const {
    const int64_t begin = cu[s < sequences ? s : sequences];
    qkv_offsets[s] = begin * 3 * heads * head_size;
    output_offsets[s] = begin * heads * head_size;
    lse_offsets[s] = begin * heads;
    if (s < planned) lengths[s] = s < sequences ? cu[s + 1] - cu[s] : 0;
  }
};

class AttentionPlan {
 public:
  // Throws CudnnRefusal. The plan must not outlive the device.
  AttentionPlan(const CudnnDevice& device, AttentionDirection direction,
                const AttentionShape& shape);
  ~AttentionPlan();
  AttentionPlan(const AttentionPlan&) = delete;
  AttentionPlan& operator=(const AttentionPlan&) = delete;

  size_t workspace() const { return workspace_; }  // bytes
  int64_t engine() const { return engine_; }       // cuDNN's number of it
  // `stream` is a cudaStream_t. One thread at a time for all plans of a device.
  void run(const AttentionTensors& tensors, void* workspace, void* stream) const;

 private:
  const CudnnDevice& device_;
  AttentionDirection direction_;
  AttentionShape shape_;
  void* plan_ = nullptr;
  size_t workspace_ = 0;
  int64_t engine_ = 0;
};

}  // namespace amur::cuda
