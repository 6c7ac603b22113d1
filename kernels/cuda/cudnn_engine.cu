#include "kernels/cuda/cudnn_engine.cuh"

namespace amur::cuda {
namespace {

constexpr int64_t kAlignment = 16;  // bytes, of every row of a head and of every list

__global__ void __launch_bounds__(kThreads) places_kernel(AttentionPlaces places) {
  for (int64_t s = first_item(); s <= places.planned; s += item_stride()) places.set(s);
}

bool is_aligned(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % kAlignment == 0;
}

// Of other devices it gave wrong gradients of packed texts (sm_120), or is not known to be right.
void check_device(Device device, AttentionDirection direction) {
  if (direction == AttentionDirection::forward) return;
  cudaDeviceProp properties{};
  AMUR_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index));
  if (properties.major < 9 || properties.major > 10)
    throw CudnnRefusal(fmt::format("cuDNN is not asked for gradients on compute capability {}.{}",
                                   properties.major, properties.minor));
}

}  // namespace

CudnnEngine& cudnn_engine() {
  static auto* engine = new CudnnEngine;
  return *engine;
}

const AttentionPlan* CudnnEngine::plan(Device device, AttentionDirection direction,
                                       const AttentionShape& shape, std::string* problem) {
  const std::lock_guard lock(mutex_);
  const auto [found, is_new] = plans_.try_emplace({device.index, direction, shape});
  Entry& entry = found->second;
  if (is_new) {
    try {
      check_device(device, direction);
      std::unique_ptr<CudnnDevice>& place = devices_[device.index];
      if (!place) place = std::make_unique<CudnnDevice>();
      auto plan = std::make_unique<AttentionPlan>(*place, direction, shape);
      if (plan->workspace() > kMostCudnnWorkspace)
        entry.problem = fmt::format("cuDNN wants {} MiB of work space, more than {}",
                                    plan->workspace() >> 20, kMostCudnnWorkspace >> 20);
      else
        entry.plan = std::move(plan);
    } catch (const CudnnRefusal& refusal) {
      entry.problem = refusal.what();
    }
  }
  if (problem) *problem = entry.problem;
  return entry.plan.get();
}

bool CudnnEngine::run(AttentionDirection direction, const PackedSequences& packed,
                      ConstTensorView qkv, AttentionTensors tensors, Stream stream) {
  const int64_t heads = qkv.shape()[2], size = qkv.shape()[3], sequences = packed.sequences();
  if (size * 2 % kAlignment != 0) return false;
  const AttentionShape shape{sequences_bucket(sequences), length_bucket(packed.longest), heads,
                             size};
  const AttentionPlan* plan = this->plan(qkv.device(), direction, shape);
  if (!plan) return false;

  const cudaStream_t s = stream_of(stream);
  const auto count = static_cast<size_t>(shape.sequences + 2) / 2 * 2;  // every list aligned
  const Scratch memory(count * (3 * sizeof(int64_t) + sizeof(int32_t)), qkv.device(), stream);
  auto* numbers = memory.as<int64_t>();
  const AttentionPlaces places{sequences,
                               shape.sequences,
                               heads,
                               size,
                               packed.cu_seqlens.as<int32_t>(),
                               numbers,
                               numbers + count,
                               numbers + 2 * count,
                               reinterpret_cast<int32_t*>(numbers + 3 * count)};
  places_kernel<<<blocks_for(shape.sequences + 1), kThreads, 0, s>>>(places);
  check_launch();
  tensors.qkv = qkv.raw();
  tensors.qkv_offsets = places.qkv_offsets;
  tensors.output_offsets = places.output_offsets;
  tensors.lse_offsets = places.lse_offsets;
  tensors.lengths = places.lengths;
  const bool backward = direction == AttentionDirection::backward;
  const Scratch row_sums(backward ? static_cast<size_t>(qkv.rows() * heads) * sizeof(float) : 0,
                         qkv.device(), stream);
  tensors.row_sums = row_sums.as<float>();
  const Scratch workspace(plan->workspace(), qkv.device(), stream);
  const std::lock_guard lock(mutex_);
  try {
    plan->run(tensors, workspace.as<void>(), s);
  } catch (const CudnnRefusal& refusal) {  // from now on it is as if there were no plan
    Entry& entry = plans_.at({qkv.device().index, direction, shape});
    entry.problem = refusal.what();
    entry.plan.reset();
    return false;
  }
  return true;
}

bool CudnnEngine::forward(const PackedSequences& packed, ConstTensorView qkv, double scale,
                          TensorView output, TensorView lse, Stream stream) {
  if (!is_aligned(qkv.raw()) || !is_aligned(output.raw()) || !is_aligned(lse.raw())) return false;
  AttentionTensors tensors;
  tensors.output = output.raw();
  tensors.lse = lse.as<float>();
  tensors.scale = static_cast<float>(scale);
  return run(AttentionDirection::forward, packed, qkv, tensors, stream);
}

bool CudnnEngine::backward(const PackedSequences& packed, ConstTensorView d_output,
                           ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                           double scale, TensorView dqkv, Stream stream) {
  if (!is_aligned(qkv.raw()) || !is_aligned(output.raw()) || !is_aligned(d_output.raw()) ||
      !is_aligned(dqkv.raw()) || !is_aligned(lse.raw()))
    return false;
  AttentionTensors tensors;
  tensors.d_output = d_output.raw();
  tensors.output = const_cast<void*>(output.raw());
  tensors.lse = const_cast<float*>(lse.as<float>());
  tensors.dqkv = dqkv.raw();
  tensors.scale = static_cast<float>(scale);
  return run(AttentionDirection::backward, packed, qkv, tensors, stream);
}

}  // namespace amur::cuda
