// What modules share: the context of a forward and a backward pass, and the store of what the
// backward needs.
//
// A module keeps no state between forward and backward: everything lies in `SavedTensors`, a strict
// stack, so that one encoder can run many chunks before any backward, keep some chunks' activations
// and recompute others. Input gradients are set, weight gradients are added to the parameter's
// sink.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "kernels/packed.h"
#include "src/core/tensor.h"

namespace amur {

// A stack of tensors in large blocks, which are kept for reuse: in one, where it was told how large
// it will be.
class SavedTensors {
 public:
  explicit SavedTensors(Device device = Device::cpu(), size_t block_bytes = size_t{32} << 20);
  // Room for so many bytes, as `rounded_bytes` counts, in one block; must be empty. Throws
  // MemoryError.
  void reserve(size_t bytes);
  // Not initialised, 64-byte aligned.
  TensorView push(const void* owner, Shape shape, DType dtype);
  // Takes the newest tensor, which `owner` must have pushed. It stays readable and writable until
  // the next push.
  TensorView pop(const void* owner);
  // The newest tensor that `owner` has pushed, left where it is.
  TensorView peek(const void* owner) const;
  // Forget everything pushed since `mark`.
  size_t mark() const { return entries_.size(); }
  void rewind(size_t mark);
  size_t bytes() const { return bytes_; }  // in use now, as `rounded_bytes` counts
  size_t peak_bytes() const { return peak_; }
  size_t held_bytes() const;  // of its blocks
  void release_blocks();      // gives the memory back; must be empty

  // What one tensor takes on the stack.
  static size_t rounded_bytes(const Shape& shape, DType dtype);

 private:
  struct Block {
    Tensor memory;
    size_t used = 0;
  };
  struct Entry {
    const void* owner;
    TensorView view;
    size_t block;
    size_t offset;
  };
  void drop_newest();

  Device device_;
  size_t block_bytes_;
  std::vector<Block> blocks_;  // those behind current_ are empty
  std::vector<Entry> entries_;
  size_t current_ = 0, bytes_ = 0, peak_ = 0;
};

// One chunk as the encoder sees it.
struct ChunkView {
  ConstTensorView ids;  // [T] i32
  PackedSequences packed;
  int64_t tokens() const { return ids.rows(); }
  int64_t sequences() const { return packed.sequences(); }
};

// The places of dropout inside a layer. Part of the key of a mask: never renumber.
enum class DropoutPlace : uint64_t {
  embeddings = 0,
  attention_probabilities = 1,
  attention_output = 2,
  feed_forward_output = 3,
};

class StepCopies;  // src/model/step_copies.h

// Passed down through forward and backward.
struct Context {
  const ChunkView* chunk = nullptr;
  SavedTensors* saved = nullptr;    // null: no backward will follow, keep nothing
  SavedTensors* scratch = nullptr;  // temporaries: mark on entry, rewind before return
  DType dtype = DType::f32;         // of activations
  bool training = false;            // dropout on
  Stream stream;
  // Backward only: is told the index of each group of Encoder::backward_groups() once this pass has
  // added all to its sinks; may be empty.
  std::function<void(size_t)> group_done;
  // Of the weights as they are, where several chunks share them; null: each makes its own.
  StepCopies* copies = nullptr;
  // The ranks that share every layer of this chunk, all with the same chunk; null: this one alone.
  // Linear, Embedding and Attention alone know of it: what they put out is the same on all of them.
  Communicator* tp = nullptr;

  int tp_rank() const { return tp ? tp->rank() : 0; }
  int tp_size() const { return tp ? tp->size() : 1; }

  // No dropout outside training.
  DropoutSite dropout(double probability, uint64_t layer, DropoutPlace place) const {
    return training ? DropoutSite{probability, layer, static_cast<uint64_t>(place)} : DropoutSite{};
  }
};

// Rewinds the scratch stack at the end of a scope.
class ScratchScope {
 public:
  explicit ScratchScope(SavedTensors& scratch) : scratch_(scratch), mark_(scratch.mark()) {}
  ~ScratchScope() { scratch_.rewind(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;
  TensorView tensor(Shape shape, DType dtype) { return scratch_.push(this, shape, dtype); }

 private:
  SavedTensors& scratch_;
  size_t mark_;
};

}  // namespace amur
