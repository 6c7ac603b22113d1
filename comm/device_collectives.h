// What NCCL does for groups of ranks whose tensors are on GPUs. It is a library of its own,
// libamur_nccl.so, loaded at run time (comm/nccl_search.h): the program names neither NCCL nor
// CUDA, and one build serves machines with and without them. Behind it stands only what calls NCCL;
// what is to be called when is decided in comm/nccl_group.h and comm/nccl_communicator.h.
//
// Nothing here waits for another rank. Every function throws CommError with the words of the
// library where that refuses a call, and where the group has failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/reduce_op.h"
#include "src/core/device.h"
#include "src/core/dtype.h"

namespace amur {

// One collective. All ranks of the group name the same kind, count, dtype, op and root.
struct DeviceOperation {
  enum class Kind : uint8_t { all_reduce, reduce, broadcast, all_gather, reduce_scatter };
  Kind kind = Kind::all_reduce;
  const void* from = nullptr;
  // May be `from`; all_gather, reduce_scatter: or its own slot in the larger one.
  void* to = nullptr;
  // Elements: what a rank brings to all_gather, keeps of reduce_scatter.
  int64_t count = 0;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  int root = 0;  // of reduce and broadcast
};

// This rank's end of a group, with one stream of its own, in which its operations follow each
// other.
class DeviceGroup {
 public:
  // Gives everything back. Aborts what is under way, unless `finish` was called and has succeeded.
  virtual ~DeviceGroup() = default;

  // False while the group or its newest call is being set up: nothing else may be called then.
  virtual bool ready() = 0;
  // The members with this colour, ordered by key. Both groups have to get ready. Collective.
  virtual std::unique_ptr<DeviceGroup> split(int color, int key) = 0;

  // The group's stream.
  virtual Stream stream() const = 0;
  // What is put into it from now on comes after what is in `other` now.
  virtual void follow(Stream other) = 0;
  // What is put into `other` from now on comes after what is in the group's stream now.
  virtual void precede(Stream other) = 0;
  // One call for all.
  virtual void enqueue(std::span<const DeviceOperation> operations) = 0;
  // A point in the group's stream behind all that was enqueued. Points are passed in their order,
  // and have to be asked for in it.
  virtual uint64_t mark() = 0;
  virtual bool passed(uint64_t mark) = 0;

  // The end on every rank; ready again when all have come to it.
  virtual void finish() = 0;
  // The end on this rank, whatever is under way. Nothing may be called any more.
  virtual void abort() noexcept = 0;
};

class DeviceCollectives {
 public:
  virtual ~DeviceCollectives() = default;

  // "NCCL 2.28.9"; asks no device.
  virtual std::string library_text() const = 0;
  // Why this library cannot be used; empty where it can.
  virtual std::string problem() const = 0;
  // Equal for two ranks of a machine that use the same GPU.
  virtual std::string gpu_identity(Device device) = 0;
  // What one rank makes and all members of a new group are given.
  virtual std::vector<std::byte> unique_id() = 0;
  virtual std::unique_ptr<DeviceGroup> join(std::span<const std::byte> unique_id, int rank,
                                            int size, Device device) = 0;
};

// The two symbols of the library, as in src/core/device_backend.h.
inline constexpr const char* kCollectivesInterfaceSymbol = "amur_collectives_interface";
inline constexpr const char* kCollectivesSymbol = "amur_collectives";
using CollectivesFunction = DeviceCollectives*();

}  // namespace amur
