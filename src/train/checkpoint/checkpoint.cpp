#include "src/train/checkpoint/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <tuple>

#include "src/core/log.h"
#include "src/train/agreement.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/checkpoint/checkpoint_output.h"
#include "src/train/checkpoint/run_folder.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

// Nanoseconds since the epoch at which a file was written or a link was made; -1 where there is
// none.
int64_t time_of(const fs::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return -1;
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

}  // namespace

struct Checkpoint::Snapshot::Parts {
  std::vector<StoredTensor> tensors;
  std::vector<RowRange> rows;  // that this rank writes
  std::vector<Tensor> copies;  // of them, in host memory; none before `take`
  GridShape shape;
  int dp_rank = 0;

  size_t size() const { return tensors.size(); }
  Slab slab(size_t i) const { return slab_of_rows(tensors[i], rows[i]); }
  // The rows of tensor i in host memory; `staging` holds them where they are elsewhere.
  ConstTensorView part(size_t i, Tensor& staging) const {
    if (!copies.empty()) return copies[i];
    return on_host(view_of_rows(tensors[i], rows[i]), staging);
  }
};

namespace {

using Parts = Checkpoint::Snapshot::Parts;

// After each dp rank has read its rows, all of them get all rows.
void share_rows(const StoredTensor& tensor, ProcessGrid& grid) {
  if (grid.shape().dp == 1) return;
  std::vector<int64_t> counts;
  for (int r = 0; r < grid.shape().dp; ++r)
    counts.push_back(rows_of(tensor, r, grid.shape().dp).count);
  const int64_t rows = tensor.rows();
  const TensorView full =
      tensor.value.reshape(Shape{rows, tensor.value.elements() / std::max<int64_t>(rows, 1)});
  const RowRange own = rows_of(tensor, grid.dp_rank(), grid.shape().dp);
  grid.dp().all_gather(full.slice(own.first, own.count), full, counts,
                       Stream(tensor.value.device()));
}

}  // namespace

FileOptions file_options(const CheckpointConfig& config) {
  return {.compression = static_cast<int>(config.compression),
          .chunk_bytes = config.chunk_size,
          .mpi_io_hints = config.mpi_io_hints};
}

Checkpoint::Snapshot::Snapshot(ParameterSet& parameters, std::span<const OptimizerSlot> slots,
                               const std::string& optimizer, ProcessGrid& grid)
    : parts_(std::make_unique<Parts>()) {
  parts_->tensors = stored_tensors(parameters, slots, optimizer, grid.tp_rank(), grid.shape().tp);
  parts_->shape = grid.shape();
  parts_->dp_rank = grid.dp_rank();
  for (const StoredTensor& t : parts_->tensors) {
    parts_->rows.push_back(rows_of(t, grid.dp_rank(), grid.shape().dp));
    if (!t.counted) parts_->rows.back().count = 0;
  }
}

Checkpoint::Snapshot::~Snapshot() = default;

void Checkpoint::Snapshot::take() {
  Parts& p = *parts_;
  const bool first = p.copies.empty();
  for (size_t i = 0; i < p.size(); ++i) {
    const ConstTensorView view = view_of_rows(p.tensors[i], p.rows[i]);
    if (first) p.copies.emplace_back(view.shape(), view.dtype());
    copy(p.copies[i], view);
  }
}

size_t Checkpoint::Snapshot::bytes() const {
  size_t bytes = 0;
  for (size_t i = 0; i < parts_->size(); ++i)
    bytes += view_of_rows(parts_->tensors[i], parts_->rows[i]).bytes();
  return bytes;
}

void Checkpoint::save(const std::string& path, const CheckpointInfo& info, const Snapshot& snapshot,
                      const FileOptions& options, Communicator& world) {
  const Parts& parts = *snapshot.parts_;
  CheckpointInfo written = info;
  written.world_size = world.size();
  written.dp = parts.shape.dp;
  written.tp = parts.shape.tp;
  CheckpointOutput file(path, written, parts.tensors, options, world);
  for (size_t i = 0; i < parts.size(); ++i) {
    Tensor staging;
    file.write(i, [&] {
      return CheckpointOutput::Part{parts.slab(i).first, parts.part(i, staging)};
    });
  }
  file.close();
  file.verify([&](size_t i) {
    const StoredTensor& t = parts.tensors[i];
    std::vector<Slab> mine;
    const int other = (parts.dp_rank + 1) % parts.shape.dp;
    if (t.counted) mine.push_back(slab_of_rows(t, rows_of(t, other, parts.shape.dp)));
    return mine;
  });
  file.publish();
}

void Checkpoint::save(const std::string& path, const CheckpointInfo& info, ParameterSet& parameters,
                      std::span<const OptimizerSlot> slots, int compression, ProcessGrid& grid) {
  save(path, info, Snapshot(parameters, slots, info.optimizer, grid), {.compression = compression},
       grid.world());
}

CheckpointInfo Checkpoint::read_info(const std::string& path, ProcessGrid* grid) {
  CheckpointInfo info;
  const auto read = [&] {
    const Hdf5File file(path, Hdf5File::Mode::read);
    info = amur::read_info(file);
  };
  if (grid)
    on_every_rank(grid->world(), read);
  else
    read();
  return info;
}

void Checkpoint::load(const std::string& path, ParameterSet& parameters,
                      std::span<const OptimizerSlot> slots, ProcessGrid& grid, Wanted wanted) {
  std::vector<StoredTensor> tensors;
  std::vector<uint64_t> local, stored;
  int64_t rounded = 0, widened = 0;
  on_every_rank(grid.world(), [&] {
    const Hdf5File file(path, Hdf5File::Mode::read);
    tensors = stored_tensors(parameters, slots,
                             amur::read_info(file, wanted == Wanted::unpublished).optimizer,
                             grid.tp_rank(), grid.shape().tp);
    if (wanted == Wanted::towers)
      std::erase_if(tensors, [](const StoredTensor& t) { return belongs_to_loss(t.path); });
    require_tensors(file, tensors);
    for (const StoredTensor& t : tensors) {
      const uint64_t sum = read_rows(file, t, rows_of(t, grid.dp_rank(), grid.shape().dp));
      const DType in_file = file.info(t.path).dtype;
      rounded += in_file != DType::bf16 && t.value.dtype() == DType::bf16;
      widened += in_file == DType::bf16 && t.value.dtype() != DType::bf16;
      local.push_back(t.counted ? sum : 0);
      stored.push_back(file.attribute_as<uint64_t>(t.path, kChecksumAttribute));
    }
  });
  const std::vector<uint64_t> found = sum_over_ranks(grid.world(), local);
  for (size_t i = 0; i < tensors.size(); ++i)
    if (found[i] != stored[i])
      throw IoError("{}", damage_text(path, tensors[i].path, stored[i], found[i]));
  if (rounded > 0)
    Log::info("'{}': {} tensors are rounded to bf16, to nearest (optimizer.state)", path, rounded);
  if (widened > 0)
    Log::info("'{}': {} tensors in bf16 are widened, exactly (optimizer.state)", path, widened);
  for (const StoredTensor& t : tensors) share_rows(t, grid);
  grid.dp().synchronize();
}

void Checkpoint::load_rules(const std::string& path, ParameterSet& parameters, ProcessGrid& grid,
                            Wanted wanted) {
  on_every_rank(grid.world(), [&] {
    const Hdf5File file(path, Hdf5File::Mode::read);
    for (Parameter& p : parameters) {
      const std::string tensor = "/model/" + p.name;
      if (wanted == Wanted::towers && belongs_to_loss(tensor)) continue;
      if (file.exists(tensor)) read_parameter_attributes(file, tensor, p);
    }
  });
}

std::optional<std::string> Checkpoint::newest_complete(const std::string& checkpoints_dir) {
  const fs::path folder = checkpoints_dir, link = folder / "latest";
  std::error_code ignored;
  const std::string latest = fs::read_symlink(link, ignored).string();
  const int64_t linked = time_of(link), linked_step = step_of_checkpoint(latest).value_or(-1);
  // One that is newer than the link, of a later step: its run was killed before it could link it.
  std::vector<std::tuple<bool, bool, int64_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (const auto step = step_of_checkpoint(name))
      found.emplace_back(*step > linked_step && time_of(entry.path()) > linked, name == latest,
                         *step, name);
  }
  std::sort(found.rbegin(), found.rend());
  for (const auto& [not_linked_yet, is_latest, step, name] : found) {
    const std::string path = (folder / name).string();
    try {
      const Hdf5File file(path, Hdf5File::Mode::read);
      amur::read_info(file);
      return path;
    } catch (const IoError& e) {
      Log::warn("passed over: {}", e.what());
    }
  }
  return std::nullopt;
}

}  // namespace amur
