// A checkpoint file on its way to its name: laid out by one rank, its tensors written by all of
// them part by part, read back, and only then published.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "src/train/checkpoint/checkpoint_format.h"

namespace amur {

// Every function is collective over the ranks that write, and throws IoError on all of them alike.
class CheckpointOutput {
 public:
  // Everything but the elements of tensors, under a temporary name beside `path`; of a tensor what
  // it is, its values are not looked at.
  CheckpointOutput(std::string path, const CheckpointInfo& info, std::vector<StoredTensor> tensors,
                   const FileOptions& options, Communicator& world);
  // Removes a file that was not published.
  ~CheckpointOutput();
  CheckpointOutput(const CheckpointOutput&) = delete;
  CheckpointOutput& operator=(const CheckpointOutput&) = delete;

  const std::string& temporary_path() const { return temporary_; }

  // Writes this rank's part of tensor `i`, where it starts in the whole tensor and its elements in
  // host memory; an empty one takes part with nothing. Each element is written by one rank, once.
  struct Part {
    Shape first;
    ConstTensorView values;
  };
  void write(size_t i, const std::function<Part()>& part);
  // All is written: check sums are noted, and the file closed.
  void close();
  // Reads the file back; `mine` are the parts of each tensor that this rank reads, best ones that
  // another rank has written: one's own could come from this machine's cache without being in the
  // file. All ranks together read each element once.
  void verify(const std::function<std::vector<Slab>(size_t i)>& mine);
  // Replaces the newest entry of the lineage by one that is not longer.
  void set_newest_ancestor(const std::string& ancestor);
  // Marks the file complete and gives it its name.
  void publish();

 private:
  std::string path_, temporary_;
  std::vector<StoredTensor> tensors_;
  std::vector<std::string> lineage_;
  FileOptions options_;
  Communicator& world_;
  std::unique_ptr<Hdf5File> file_;
  std::vector<uint64_t> sums_;  // of what this rank has written; of all ranks once closed
  bool published_ = false;
};

// Check sums over all ranks, modulo 2^64. Collective.
std::vector<uint64_t> sum_over_ranks(Communicator& world, const std::vector<uint64_t>& local);

}  // namespace amur
