// What the attention kernels share: attention.cu for f32 and f64, attention_bf16.cu for bf16.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/packed.cuh"
#include "kernels/dropout_math.h"

namespace amur::cuda {

template <class A>
struct AttentionDropout {
  const int64_t* keys;  // null where nothing is dropped
  uint64_t layer, site, first_head;
  uint32_t threshold;
  A factor;

  // Of one sequence; 0 where nothing is dropped.
  __device__ uint64_t key(int64_t sequence) const {
    return keys ? dropout_key(keys[sequence], layer, site) : 0;
  }
  __device__ uint64_t first_element(int64_t head) const {
    return (first_head + static_cast<uint64_t>(head)) * 65536;
  }
};

// qkv and dqkv are [T, 3, heads, head_size], output and its gradient [T, heads, head_size], lse
// and along [T, heads].
template <class T, class A = AccumulateType<T>>
struct AttentionProblem {
  int64_t sequences, heads;
  int head_size;
  int64_t window;  // keys on either side that a query sees
  const int32_t* cu;
  A scale;
  AttentionDropout<A> dropout;
  const T* qkv;

  __device__ int64_t qkv_stride() const { return 3 * output_stride(); }
  __device__ int64_t output_stride() const { return heads * head_size; }
  // Of a token and a head; part 0 to 2: query, key, value.
  __device__ int64_t qkv_at(int64_t token, int part, int64_t head) const {
    return ((token * 3 + part) * heads + head) * head_size;
  }
  __device__ int64_t output_at(int64_t token, int64_t head) const {
    return (token * heads + head) * head_size;
  }
  __device__ bool sees(int64_t query, int64_t key) const {
    return query - key <= window && key - query <= window;
  }
};

template <class T, class A = AccumulateType<T>>
AttentionProblem<T> attention_problem(const PackedSequences& packed, ConstTensorView qkv,
                                      double scale, const DropoutSite& site, int64_t window) {
  const bool drops = site.probability > 0;
  return {
      packed.sequences(),
      qkv.shape()[2],
      static_cast<int>(qkv.shape()[3]),
      window,
      packed.cu_seqlens.as<int32_t>(),
      static_cast<A>(scale),
      {drops ? packed.dropout_keys.as<int64_t>() : nullptr, site.layer, site.site, site.first_head,
       drops ? dropout_threshold(site.probability) : 0, static_cast<A>(1 / (1 - site.probability))},
      qkv.as<T>()};
}

// Of `own` rows from own_first on, in a sequence of n tokens: the places of the other side that
// they see or are seen from, from a multiple of `tile` on.
struct OtherPlaces {
  int64_t first, end;

  __device__ OtherPlaces(int64_t own_first, int64_t own, int64_t n, int64_t window, int64_t tile) {
    const int64_t lowest = own_first - window;
    first = lowest > 0 ? lowest / tile * tile : 0;
    const int64_t highest = own_first + own + window;
    end = highest < n ? highest : n;
  }
};

template <class A>
__device__ A* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<A*>(shared_bytes);
}

// A block's shared memory beyond what it gets unasked.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  if (bytes > kUnaskedSharedMemory)
    AMUR_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(bytes)));
}

// attention_bf16.cu; heads are of at most kWidestHead elements, the scale is positive.
void attention_forward_bf16(const PackedSequences& packed, ConstTensorView qkv, double scale,
                            const DropoutSite& dropout, TensorView o, TensorView lse,
                            int64_t window, cudaStream_t stream);
void attention_backward_bf16(const PackedSequences& packed, ConstTensorView d_output,
                             ConstTensorView qkv, ConstTensorView output, ConstTensorView lse,
                             double scale, const DropoutSite& dropout, TensorView dqkv,
                             int64_t window, Stream stream);

}  // namespace amur::cuda
