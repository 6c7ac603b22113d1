// In the place of cudnn_attention.cpp where the module was built without cuDNN's headers.
#include "kernels/cuda/cudnn_attention.h"

namespace amur::cuda {

const CudnnSearch& find_cudnn() {
  static const CudnnSearch search{"", "the GPU back end was built without its headers"};
  return search;
}

CudnnDevice::CudnnDevice() {
  throw CudnnRefusal(find_cudnn().problem);
}
CudnnDevice::CudnnDevice(const std::string&) : CudnnDevice() {}
CudnnDevice::~CudnnDevice() = default;

AttentionPlan::AttentionPlan(const CudnnDevice& device, AttentionDirection direction,
                             const AttentionShape& shape)
    : device_(device), direction_(direction), shape_(shape) {
  throw CudnnRefusal(find_cudnn().problem);
}
AttentionPlan::~AttentionPlan() = default;
void AttentionPlan::run(const AttentionTensors&, void*, void*) const {}

}  // namespace amur::cuda
