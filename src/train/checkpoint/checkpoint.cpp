#include "src/train/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "src/core/log.h"
#include "src/train/checkpoint/agreement.h"
#include "src/train/checkpoint/checkpoint_format.h"
#include "src/train/checkpoint/run_folder.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

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
    const ConstTensorView view = view_of_rows(tensors[i], rows[i]);
    if (view.device() == Device::cpu()) return view;
    staging = Tensor(view.shape(), view.dtype());
    copy(staging, view);
    return staging;
  }
};

namespace {

using Parts = Checkpoint::Snapshot::Parts;

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) throw IoError("cannot open '{}': {}", path, std::strerror(errno));
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Check sums over all ranks, modulo 2^64; halves, so that a signed sum cannot overflow.
std::vector<uint64_t> sum_over_ranks(Communicator& world, const std::vector<uint64_t>& local) {
  std::vector<int64_t> halves;
  for (uint64_t v : local) {
    halves.push_back(static_cast<int64_t>(v & 0xffffffffu));
    halves.push_back(static_cast<int64_t>(v >> 32));
  }
  const TensorView view(halves.data(), Shape{static_cast<int64_t>(halves.size())}, DType::i64);
  if (!halves.empty()) {
    world.all_reduce(view, ReduceOp::sum);
    world.synchronize();
  }
  std::vector<uint64_t> sums;
  for (size_t i = 0; i < halves.size(); i += 2)
    sums.push_back(static_cast<uint64_t>(halves[i]) + (static_cast<uint64_t>(halves[i + 1]) << 32));
  return sums;
}

// Takes the blocks of the whole file, so that a full disk is met here, by one rank, and not inside
// HDF5 (which cannot give up a file whose end it could not write) or a collective transfer.
void reserve_space(const std::string& file, int64_t bytes) {
  const FileDescriptor fd(file, O_RDWR | O_CREAT);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0)
    throw IoError("cannot examine '{}': {}", file, std::strerror(errno));
  // An existing file keeps its size; blocks behind its end are given back when it is published.
  const int mode = status.st_size > 0 ? FALLOC_FL_KEEP_SIZE : 0;
  if (::fallocate(fd.get(), mode, 0, std::max<off_t>(status.st_size, bytes)) == 0) return;
  int reason = errno;
  if (reason == EOPNOTSUPP || reason == ENOSYS) {
    struct statvfs space {};
    if (::fstatvfs(fd.get(), &space) != 0) return;
    if (static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize) >=
        static_cast<double>(bytes))
      return;
    reason = ENOSPC;
  }
  throw IoError(
      "no room for checkpoint '{}' of {:.1f} MB: {}. Free some space, or keep fewer "
      "checkpoints (checkpoint.keep)",
      file, static_cast<double>(bytes) / 1e6, std::strerror(reason));
}

std::vector<uint64_t> checksums(const Parts& parts, Communicator& world) {
  std::vector<uint64_t> local;
  for (size_t i = 0; i < parts.size(); ++i) {
    Tensor staging;
    local.push_back(
        checksum_of(parts.part(i, staging), parts.slab(i).first, parts.tensors[i].global));
  }
  return sum_over_ranks(world, local);
}

int64_t bytes_of(const std::vector<StoredTensor>& tensors) {
  int64_t bytes = 0;
  for (const StoredTensor& t : tensors)
    bytes += t.global.elements() * static_cast<int64_t>(size_of(t.value.dtype()));
  return bytes;
}

// Not less than what everything but the elements of tensors takes.
int64_t overhead_of(const CheckpointInfo& info, const std::vector<StoredTensor>& tensors) {
  constexpr int64_t kStructure = 1 << 16, kPerObject = 1 << 12;
  auto texts = info.config_yaml.size() + info.data_fingerprint.size();
  for (const std::string& ancestor : info.lineage) texts += ancestor.size();
  for (const auto& [kind, model] : info.tokenizer) texts += model.size();
  const auto columns = static_cast<int64_t>(info.metrics.columns.size());
  return kStructure + kPerObject * (static_cast<int64_t>(tensors.size()) + columns) +
         static_cast<int64_t>(texts) + columns * info.metrics.rows() * 8;
}

// One rank writes everything but the tensors' elements.
void lay_out(const std::string& file_name, const CheckpointInfo& info,
             const std::vector<StoredTensor>& tensors, const std::vector<uint64_t>& sums,
             const FileOptions& options) {
  fs::remove(file_name);
  reserve_space(file_name, bytes_of(tensors) + overhead_of(info, tensors));
  Hdf5File file(file_name, Hdf5File::Mode::create, nullptr, options);
  write_info(file, info);
  file.create_group("/model");
  file.create_group(info.optimizer.empty() ? "/optimizer" : "/optimizer/" + info.optimizer);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor& t = tensors[i];
    file.create_dataset(t.path, t.global, t.value.dtype(), true);
    write_tensor_attributes(file, t, sums[i]);
  }
  file.close();
  reserve_space(file_name, bytes_of(tensors));
}

void write_tensors(const std::string& file_name, const Parts& parts, const FileOptions& options,
                   Communicator& world) {
  on_every_rank(world, [&] {
    if (!fs::exists(file_name))
      throw IoError("'{}' is not seen by every rank: use a folder on a shared file system",
                    file_name);
  });
  std::unique_ptr<Hdf5File> file;
  on_every_rank(world, [&] {
    file = std::make_unique<Hdf5File>(file_name, Hdf5File::Mode::write,
                                      world.size() > 1 ? world.mpi_handle() : nullptr, options);
  });
  for (size_t i = 0; i < parts.size(); ++i) {
    const StoredTensor& t = parts.tensors[i];
    if (t.global.elements() == 0) continue;  // has no place in the file
    // Agreed one by one: after a failure no rank enters another collective transfer.
    on_every_rank(world, [&] {
      Tensor staging;
      file->write(t.path, parts.slab(i).first, parts.part(i, staging));
    });
  }
  on_every_rank(world, [&] { file->flush(); });
  on_every_rank(world, [&] { file->close(); });
}

// Reads the tensors' elements back; what differs from the check sums in the file is an error.
void verify_tensors(const std::string& file_name, const Parts& parts,
                    const std::vector<uint64_t>& sums, Communicator& world) {
  std::vector<uint64_t> local(parts.size(), 0);
  on_every_rank(world, [&] {
    const Hdf5File file(file_name, Hdf5File::Mode::read);
    if (world.rank() == 0) read_info(file, true);
    // Another rank's part: one's own could come from this machine's cache without being in the
    // file.
    const int other = (parts.dp_rank + 1) % parts.shape.dp;
    for (size_t i = 0; i < parts.size(); ++i)
      if (const StoredTensor& t = parts.tensors[i]; t.counted)
        local[i] = read_rows(file, t, rows_of(t, other, parts.shape.dp), false);
  });
  const std::vector<uint64_t> found = sum_over_ranks(world, local);
  for (size_t i = 0; i < parts.size(); ++i)
    if (found[i] != sums[i])
      throw IoError(
          "'{}' does not hold what was written: {} differs. The disk or its file system "
          "loses data",
          file_name, parts.tensors[i].path);
}

void sync_folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  const FileDescriptor fd(parent.empty() ? "." : parent.string(), O_RDONLY | O_DIRECTORY);
  if (::fsync(fd.get()) != 0 && errno != EINVAL)
    Log::warn("cannot sync folder '{}': {}", parent.string(), std::strerror(errno));
}

// Marks the file complete and gives it its name, in this order on the disk too.
void publish(const std::string& temporary, const std::string& path) {
  {
    Hdf5File file(temporary, Hdf5File::Mode::write);
    file.set_attribute("/", "complete", int64_t{1});
    file.close();
  }
  {
    const FileDescriptor fd(temporary, O_RDWR);
    struct stat status {};
    // Cutting to its own size gives back what was reserved behind the end.
    if (::fstat(fd.get(), &status) != 0 || ::ftruncate(fd.get(), status.st_size) != 0 ||
        ::fsync(fd.get()) != 0)
      throw IoError("cannot bring '{}' to the disk: {}", temporary, std::strerror(errno));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    throw IoError("cannot rename '{}' to '{}': {}", temporary, path, std::strerror(errno));
  sync_folder_of(path);
}

// Every difference between the tensors asked for and those of the file, one a line.
std::string mismatch_text(const Hdf5File& file, const std::vector<StoredTensor>& tensors) {
  std::string text;
  std::set<std::string> asked;
  for (const StoredTensor& t : tensors) {
    asked.insert(t.path);
    if (!file.exists(t.path)) {
      text += fmt::format("\n  missing: {} {}", t.path, t.global.text());
      continue;
    }
    const Shape stored = file.info(t.path).shape;
    if (stored != t.global)
      text += fmt::format("\n  shape: {} is {} in the file, {} here", t.path, stored.text(),
                          t.global.text());
  }
  for (const std::string& name : file.children("/model")) {
    const std::string path = "/model/" + name;
    if (!asked.contains(path))
      text += fmt::format("\n  unexpected: {} {}", path, file.info(path).shape.text());
  }
  return text;
}

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
  const std::string temporary = path + kTemporarySuffix;
  const Parts& parts = *snapshot.parts_;
  CheckpointInfo written = info;
  written.world_size = world.size();
  written.dp = parts.shape.dp;
  written.tp = parts.shape.tp;
  const std::vector<uint64_t> sums = checksums(parts, world);
  try {
    on_first_rank(world, [&] { lay_out(temporary, written, parts.tensors, sums, options); });
    write_tensors(temporary, parts, options, world);
    verify_tensors(temporary, parts, sums, world);
    on_first_rank(world, [&] { publish(temporary, path); });
  } catch (...) {
    if (world.rank() == 0) ::unlink(temporary.c_str());
    throw;
  }
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
                      std::span<const OptimizerSlot> slots, ProcessGrid& grid) {
  std::vector<StoredTensor> tensors;
  std::vector<uint64_t> local, stored;
  on_every_rank(grid.world(), [&] {
    const Hdf5File file(path, Hdf5File::Mode::read);
    tensors = stored_tensors(parameters, slots, amur::read_info(file).optimizer, grid.tp_rank(),
                             grid.shape().tp);
    if (const std::string text = mismatch_text(file, tensors); !text.empty())
      throw IoError("checkpoint '{}' is of another model:{}", path, text);
    for (const StoredTensor& t : tensors) {
      const uint64_t sum = read_rows(file, t, rows_of(t, grid.dp_rank(), grid.shape().dp), true);
      local.push_back(t.counted ? sum : 0);
      stored.push_back(file.attribute_as<uint64_t>(t.path, kChecksumAttribute));
    }
  });
  const std::vector<uint64_t> found = sum_over_ranks(grid.world(), local);
  for (size_t i = 0; i < tensors.size(); ++i)
    if (found[i] != stored[i])
      throw IoError("{}", damage_text(path, tensors[i].path, stored[i], found[i]));
  for (const StoredTensor& t : tensors) share_rows(t, grid);
  grid.dp().synchronize();
}

void Checkpoint::load_rules(const std::string& path, ParameterSet& parameters, ProcessGrid& grid) {
  on_every_rank(grid.world(), [&] {
    const Hdf5File file(path, Hdf5File::Mode::read);
    for (Parameter& p : parameters) {
      const std::string tensor = "/model/" + p.name;
      if (file.exists(tensor)) read_parameter_attributes(file, tensor, p);
    }
  });
}

std::optional<std::string> Checkpoint::newest_complete(const std::string& checkpoints_dir) {
  std::error_code ignored;
  std::vector<std::pair<int64_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator(checkpoints_dir, ignored)) {
    const std::string name = entry.path().filename().string();
    if (const auto step = step_of_checkpoint(name)) found.emplace_back(*step, name);
  }
  std::sort(found.rbegin(), found.rend());
  const fs::path latest = fs::read_symlink(fs::path(checkpoints_dir) / "latest", ignored);
  const auto named = std::find_if(found.begin(), found.end(),
                                  [&](const auto& f) { return f.second == latest.string(); });
  if (named != found.end()) std::rotate(found.begin(), named, named + 1);
  for (const auto& [step, name] : found) {
    const std::string path = (fs::path(checkpoints_dir) / name).string();
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
