// A small model with one tensor of every kind that a file must hold, and a scratch folder.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "comm/runtime.h"
#include "src/train/checkpoint/checkpoint.h"

namespace amur::test {

// One per process: the Runtime lives as long as the program.
Runtime& runtime();

// Removed at the end; the same path on all ranks.
class ScratchFolder {
 public:
  explicit ScratchFolder(Communicator* world = nullptr);
  ~ScratchFolder();
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  Communicator* world_;
  std::filesystem::path path_;
};

// Parameters sharded on axes 0, 1 and 2 and not at all, a scalar, an empty tensor; two optimizer
// slots, one of them with one value a row. Values depend on `seed` only.
class SmallModel {
 public:
  explicit SmallModel(ProcessGrid& grid, uint64_t seed = 1, DType dtype = DType::f32)
      : SmallModel(grid, seed, dtype, dtype) {}
  // Weights, embeddings and their momenta in `matrices`.
  SmallModel(ProcessGrid& grid, uint64_t seed, DType dtype, DType matrices);

  ParameterSet parameters;
  std::vector<OptimizerSlot> slots() { return slots_; }
  // All local values, bit for bit, by name.
  std::map<std::string, std::vector<std::byte>> bits() const;
  void clear();

 private:
  std::vector<Tensor> state_;
  std::vector<OptimizerSlot> slots_;
};

CheckpointInfo example_info(int64_t step = 7);
void expect_equal(const CheckpointInfo& a, const CheckpointInfo& b);

// The text of the IoError that `f` throws; "" and a failure if it throws none.
template <class F>
std::string io_error_of(F&& f) {
  try {
    f();
  } catch (const IoError& e) {
    return e.what();
  }
  ADD_FAILURE() << "no IoError";
  return "";
}

std::vector<char> bytes_of_file(const std::string& path);
void write_file(const std::string& path, const std::vector<char>& bytes);

}  // namespace amur::test
