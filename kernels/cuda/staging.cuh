// Copies between host and device, through pinned memory: a copy from or to ordinary memory would
// wait for all that is queued before it, and go at a fraction of the speed.
#pragma once

#include <span>

#include "kernels/cuda/backend.cuh"

namespace amur::cuda {

// Queues the copy; `from` may go when it returns, which is before the copy is made.
void copy_to_device(void* to, const void* from, size_t bytes, Device device, cudaStream_t stream);
// Waits for the copy, and with it for all that was queued before.
void copy_to_host(void* to, const void* from, size_t bytes, Device device, cudaStream_t stream);

// A list of the host in the memory of a device, for as long as the work queued before its end.
template <class T>
class Uploaded {
 public:
  Uploaded(std::span<const T> list, Device device, Stream stream)
      : scratch_(list.size_bytes(), device, stream) {
    copy_to_device(scratch_.as<T>(), list.data(), list.size_bytes(), device, stream_of(stream));
  }
  const T* data() const { return scratch_.template as<T>(); }

 private:
  Scratch scratch_;
};

}  // namespace amur::cuda
