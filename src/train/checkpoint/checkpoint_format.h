// What a checkpoint file of version 1 is made of (docs/checkpoint-format.md): names, check sums,
// the tensors as one rank sees them, and everything that is not a tensor.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/train/checkpoint/checkpoint.h"
#include "src/train/checkpoint/hdf5_file.h"

namespace amur {

inline constexpr const char* kCheckpointFormat = "amur-checkpoint";
inline constexpr int64_t kCheckpointVersion = 1;
inline constexpr const char* kTemporarySuffix = ".tmp";
inline constexpr const char* kChecksumAttribute = "checksum";

// Sum modulo 2^64 over the elements of mix64((i + 1) * 0x9e3779b97f4a7c15 + bits), with i the
// element's row-major index in the whole tensor and `bits` its little-endian value. Parts may be
// summed in any order, so it does not depend on how the tensor is spread. A change of any one
// element always changes it. `block` is in host memory and starts at `first` of `global`.
uint64_t checksum_of(ConstTensorView block, const Shape& first, const Shape& global);
uint64_t checksum_of(std::span<const std::byte> bytes);

// A tensor of the file: where it stands, and the part of it that this rank holds.
struct StoredTensor {
  std::string path;  // "/model/query.tokens.weight"
  const Parameter* parameter;
  Shape global;
  Slab slab;         // of this tp rank
  TensorView value;  // [slab.count]
  bool replicated;   // every rank of a tp group holds all of it
  // Ranks of a tp group that hold the same elements count them once.
  bool counted;

  int64_t rows() const { return slab.count.dims() == 0 ? 1 : slab.count[0]; }
};

std::vector<StoredTensor> stored_tensors(ParameterSet& parameters,
                                         std::span<const OptimizerSlot> slots,
                                         const std::string& optimizer, int tp_rank, int tp_size);

// The same tensors whole, as one rank without tensor parallelism has them, with no values; `slots`
// as of Optimizer::make on the same outline.
std::vector<StoredTensor> outlined_tensors(ParameterSet& parameters,
                                           std::span<const OptimizerSlot> slots,
                                           const std::string& optimizer, DType dtype);
// Of the loss: temperature and bias.
bool belongs_to_loss(const std::string& path);
// IoError that lists all missing, unexpected and mis-shaped tensors; those of the loss, where
// `tensors` has none, are not unexpected.
void require_tensors(const Hdf5File& file, const std::vector<StoredTensor>& tensors);

// Some rows of a stored tensor's slab.
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
};
// How dp ranks share the slab for reading and writing.
RowRange rows_of(const StoredTensor& tensor, int dp_rank, int dp_size);
// Where these rows start in the whole tensor, and their extent.
Slab slab_of_rows(const StoredTensor& tensor, RowRange rows);
TensorView view_of_rows(const StoredTensor& tensor, RowRange rows);

// Reads these rows block by block into `tensor.value` (converting between f32, bf16 and f64), and
// returns their check sum as stored.
uint64_t read_rows(const Hdf5File& file, const StoredTensor& tensor, RowRange rows);
// Reads a part of the whole tensor block by block, and forgets it.
uint64_t checksum_in_file(const Hdf5File& file, const StoredTensor& tensor, const Slab& part);

// What write_tensor_attributes has written about how a parameter learns.
void read_parameter_attributes(const Hdf5File& file, const std::string& path, Parameter& parameter);

// Attributes of a tensor that come from its parameter, and its check sum.
void write_tensor_attributes(Hdf5File& file, const StoredTensor& tensor, uint64_t checksum);

// Everything but tensors; the file is marked incomplete.
void write_info(Hdf5File& file, const CheckpointInfo& info);
// Replaces the lineage by one whose entries are not longer.
void write_lineage(Hdf5File& file, const std::vector<std::string>& lineage);
// Throws IoError for a file that is no checkpoint, of another version, incomplete unless
// `allow_incomplete`, or damaged.
CheckpointInfo read_info(const Hdf5File& file, bool allow_incomplete = false);

// "tensor /model/x is damaged: ..." as the message of an IoError.
std::string damage_text(const std::string& path, const std::string& object, uint64_t stored,
                        uint64_t found);

}  // namespace amur
