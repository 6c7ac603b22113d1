#include "src/train/checkpoint/checkpoint_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "src/core/log.h"
#include "src/train/agreement.h"

namespace amur {
namespace {

namespace fs = std::filesystem;

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
  for (const auto& [name, value] : info.measured_choices) texts += name.size() + value.size() + 64;
  const auto columns = static_cast<int64_t>(info.metrics.columns.size());
  return kStructure + kPerObject * (static_cast<int64_t>(tensors.size()) + columns) +
         static_cast<int64_t>(texts) + columns * info.metrics.rows() * 8;
}

// One rank writes everything but the tensors' elements.
void lay_out(const std::string& file_name, const CheckpointInfo& info,
             const std::vector<StoredTensor>& tensors, const FileOptions& options) {
  fs::remove(file_name);
  reserve_space(file_name, bytes_of(tensors) + overhead_of(info, tensors));
  Hdf5File file(file_name, Hdf5File::Mode::create, nullptr, options);
  write_info(file, info);
  file.create_group("/model");
  file.create_group(info.optimizer.empty() ? "/optimizer" : "/optimizer/" + info.optimizer);
  for (const StoredTensor& t : tensors) {
    file.create_dataset(t.path, t.global, t.value.dtype(), true);
    write_tensor_attributes(file, t, 0);  // the check sum is known when all is written
  }
  file.close();
  reserve_space(file_name, bytes_of(tensors));
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

}  // namespace

// Halves, so that a signed sum cannot overflow.
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

CheckpointOutput::CheckpointOutput(std::string path, const CheckpointInfo& info,
                                   std::vector<StoredTensor> tensors, const FileOptions& options,
                                   Communicator& world)
    : path_(std::move(path)),
      temporary_(path_ + kTemporarySuffix),
      tensors_(std::move(tensors)),
      lineage_(info.lineage),
      options_(options),
      world_(world),
      sums_(tensors_.size(), 0) {
  try {
    on_first_rank(world_, [&] { lay_out(temporary_, info, tensors_, options_); });
    on_every_rank(world_, [&] {
      if (!fs::exists(temporary_))
        throw IoError("'{}' is not seen by every rank: use a folder on a shared file system",
                      temporary_);
    });
    on_every_rank(world_, [&] {
      file_ =
          std::make_unique<Hdf5File>(temporary_, Hdf5File::Mode::write,
                                     world_.size() > 1 ? world_.mpi_handle() : nullptr, options_);
    });
  } catch (...) {
    if (world_.rank() == 0) ::unlink(temporary_.c_str());
    throw;
  }
}

CheckpointOutput::~CheckpointOutput() {
  file_.reset();
  if (!published_ && world_.rank() == 0) ::unlink(temporary_.c_str());
}

void CheckpointOutput::write(size_t i, const std::function<Part()>& part) {
  const StoredTensor& t = tensors_[i];
  if (t.global.elements() == 0) return;  // has no place in the file
  // Agreed one by one: after a failure no rank enters another collective transfer.
  Part mine;
  on_every_rank(world_, [&] {
    mine = part();
    sums_[i] += checksum_of(mine.values, mine.first, t.global);
  });
  on_every_rank(world_, [&] { file_->write(t.path, mine.first, mine.values); });
}

void CheckpointOutput::close() {
  on_every_rank(world_, [&] { file_->flush(); });
  on_every_rank(world_, [&] { file_->close(); });
  sums_ = sum_over_ranks(world_, sums_);
  on_first_rank(world_, [&] {
    Hdf5File file(temporary_, Hdf5File::Mode::write);
    for (size_t i = 0; i < tensors_.size(); ++i)
      file.set_attribute(tensors_[i].path, kChecksumAttribute, sums_[i]);
    file.close();
  });
}

void CheckpointOutput::verify(const std::function<std::vector<Slab>(size_t i)>& mine) {
  std::vector<uint64_t> local(tensors_.size(), 0);
  on_every_rank(world_, [&] {
    const Hdf5File file(temporary_, Hdf5File::Mode::read);
    if (world_.rank() == 0) read_info(file, true);
    for (size_t i = 0; i < tensors_.size(); ++i)
      for (const Slab& part : mine(i)) local[i] += checksum_in_file(file, tensors_[i], part);
  });
  const std::vector<uint64_t> found = sum_over_ranks(world_, local);
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (found[i] != sums_[i])
      throw IoError(
          "'{}' does not hold what was written: {} differs. The disk or its file system "
          "loses data",
          temporary_, tensors_[i].path);
}

void CheckpointOutput::set_newest_ancestor(const std::string& ancestor) {
  AMUR_CHECK(!lineage_.empty() && ancestor.size() <= lineage_.back().size(),
             "an ancestor of {} bytes has no room", ancestor.size());
  lineage_.back() = ancestor;
  on_first_rank(world_, [&] {
    Hdf5File file(temporary_, Hdf5File::Mode::write);
    write_lineage(file, lineage_);
    file.close();
  });
}

void CheckpointOutput::publish() {
  on_first_rank(world_, [&] { amur::publish(temporary_, path_); });
  published_ = true;
}

}  // namespace amur
