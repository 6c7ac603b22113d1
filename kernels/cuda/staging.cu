#include "kernels/cuda/staging.cuh"

#include <array>
#include <cstring>
#include <mutex>

namespace amur::cuda {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;
constexpr size_t kPieces = 8;
constexpr size_t kAlignment = 64;

// Pieces of pinned memory, filled one after another and used again in that order. The copies of one
// piece are of one stream, so that its last one tells when all of them are done.
class Ring {
 public:
  struct Place {
    size_t piece;
    std::byte* at;
  };

  // Waits until as much is free. At most kPieceBytes.
  Place take(size_t bytes, cudaStream_t stream) {
    if (!pieces_[0].memory) open();
    Piece* piece = &pieces_[current_];
    if (piece->used + bytes > kPieceBytes || (piece->used > 0 && piece->stream != stream)) {
      current_ = (current_ + 1) % kPieces;
      piece = &pieces_[current_];
      wait(current_);
      piece->used = 0;
    }
    std::byte* at = piece->memory + piece->used;
    piece->used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    piece->stream = stream;
    return {current_, at};
  }
  // A copy from or to the place has been queued.
  void queued(const Place& place) {
    AMUR_CUDA_CHECK(cudaEventRecord(pieces_[place.piece].last, pieces_[place.piece].stream));
  }
  void wait(size_t piece) { AMUR_CUDA_CHECK(cudaEventSynchronize(pieces_[piece].last)); }

  std::mutex mutex;  // one copy at a time

 private:
  struct Piece {
    std::byte* memory = nullptr;
    size_t used = 0;
    cudaStream_t stream = nullptr;
    cudaEvent_t last = nullptr;
  };

  // Never closed: the driver may be gone before the last static object.
  void open() {
    void* memory = nullptr;
    AMUR_CUDA_CHECK(cudaHostAlloc(&memory, kPieces * kPieceBytes, cudaHostAllocDefault));
    for (size_t i = 0; i < kPieces; ++i) {
      AMUR_CUDA_CHECK(cudaEventCreateWithFlags(&pieces_[i].last, cudaEventDisableTiming));
      pieces_[i].memory = static_cast<std::byte*>(memory) + i * kPieceBytes;
    }
  }

  std::array<Piece, kPieces> pieces_;
  size_t current_ = 0;
};

Ring& ring_of(Device device) {
  constexpr size_t kMostGpus = 64;  // as src/core/device.cpp
  static std::array<Ring, kMostGpus> rings;
  return rings.at(static_cast<size_t>(device.index));
}

}  // namespace

void copy_to_device(void* to, const void* from, size_t bytes, Device device, cudaStream_t stream) {
  Ring& ring = ring_of(device);
  const std::lock_guard lock(ring.mutex);
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  for (size_t at = 0; at < bytes; at += kPieceBytes) {
    const size_t count = std::min(kPieceBytes, bytes - at);
    const Ring::Place place = ring.take(count, stream);
    std::memcpy(place.at, static_cast<const std::byte*>(from) + at, count);
    AMUR_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, place.at, count,
                                    cudaMemcpyHostToDevice, stream));
    ring.queued(place);
  }
}

// The next piece comes while one is copied on.
void copy_to_host(void* to, const void* from, size_t bytes, Device device, cudaStream_t stream) {
  Ring& ring = ring_of(device);
  const std::lock_guard lock(ring.mutex);
  AMUR_CUDA_CHECK(cudaSetDevice(device.index));
  Ring::Place before{};
  for (size_t at = 0; at < bytes + kPieceBytes; at += kPieceBytes) {
    Ring::Place place{};
    if (at < bytes) {
      const size_t count = std::min(kPieceBytes, bytes - at);
      place = ring.take(count, stream);
      AMUR_CUDA_CHECK(cudaMemcpyAsync(place.at, static_cast<const std::byte*>(from) + at, count,
                                      cudaMemcpyDeviceToHost, stream));
      ring.queued(place);
    }
    if (before.at) {
      ring.wait(before.piece);
      const size_t done = at - kPieceBytes;
      std::memcpy(static_cast<std::byte*>(to) + done, before.at,
                  std::min(kPieceBytes, bytes - done));
    }
    before = place;
  }
}

}  // namespace amur::cuda
