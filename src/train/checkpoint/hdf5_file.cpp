#include "src/train/checkpoint/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <sstream>
#include <utility>

namespace amur {
namespace {

static_assert(std::is_same_v<hid_t, int64_t>, "HDF5 before 1.10");

// Held during every call of the library.
std::recursive_mutex& library() {
  static std::recursive_mutex mutex;
  return mutex;
}
using Turn = std::lock_guard<std::recursive_mutex>;

// Begun after MPI, HDF5 closes what is left of it within MPI_Finalize, where 1.10.8 reads what it
// has freed if a file could not be closed, on a full disk say. Begun before, and told to leave the
// exit alone, it closes nothing of its own accord: files are closed by their owners.
[[maybe_unused]] const bool begun_before_mpi = H5dont_atexit() >= 0 && H5open() >= 0;

// An HDF5 identifier that closes itself.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor)
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  Close close_;
};

// "key=value, key=value" as MPI takes it.
class Hints {
 public:
  explicit Hints(const std::string& text) {
    if (text.find('=') == std::string::npos) return;
    MPI_Info_create(&info_);
    std::stringstream entries(text);
    for (std::string entry; std::getline(entries, entry, ',');) {
      entry.erase(0, entry.find_first_not_of(' '));
      const size_t equals = entry.find('=');
      if (equals != std::string::npos)
        MPI_Info_set(info_, entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str());
    }
  }
  ~Hints() {
    if (info_ != MPI_INFO_NULL) MPI_Info_free(&info_);
  }
  Hints(const Hints&) = delete;
  Hints& operator=(const Hints&) = delete;
  MPI_Info info() const { return info_; }

 private:
  MPI_Info info_ = MPI_INFO_NULL;
};

// Without this the library prints its error stack on standard error.
void silence_error_stack() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// The innermost entry of the library's error stack: the cause.
std::string error_stack_text() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* entry, void* out) -> herr_t {
        if (n == 0 && entry->desc) *static_cast<std::string*>(out) = entry->desc;
        return 0;
      },
      &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? "no reason given by HDF5" : text;
}

// The upper half of a little-endian IEEE float, as HDF5 2.0 names it H5T_FLOAT_BFLOAT16LE: readers
// that do not know it see a float of 16 bits, and convert it.
hid_t bf16_type() {
  static const hid_t type = [] {
    const hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(t, 15, 7, 8, 0, 7);  // sign, exponent at 7 of 8 bits, mantissa at 0 of 7 bits
    H5Tset_precision(t, 16);
    H5Tset_size(t, 2);
    H5Tset_ebias(t, 127);
    return t;
  }();
  return type;
}

hid_t file_type(DType t) {
  switch (t) {
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::f64:
      return H5T_IEEE_F64LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::i64:
      return H5T_STD_I64LE;
    case DType::u8:
      return H5T_STD_U8LE;
    case DType::bf16:
      return bf16_type();
  }
  throw InternalError(fmt::format("{} is not stored in files", name_of(t)));
}

hid_t memory_type(DType t) {
  switch (t) {
    case DType::f32:
      return H5T_NATIVE_FLOAT;
    case DType::f64:
      return H5T_NATIVE_DOUBLE;
    case DType::i32:
      return H5T_NATIVE_INT32;
    case DType::i64:
      return H5T_NATIVE_INT64;
    case DType::u8:
      return H5T_NATIVE_UINT8;
    case DType::bf16:
      return bf16_type();
  }
  throw InternalError(fmt::format("{} is not stored in files", name_of(t)));
}

std::array<hsize_t, Shape::kMaxDims> dims_of(const Shape& shape) {
  std::array<hsize_t, Shape::kMaxDims> dims{};
  for (int i = 0; i < shape.dims(); ++i)
    dims[static_cast<size_t>(i)] = static_cast<hsize_t>(shape[i]);
  return dims;
}

hid_t make_space(const Shape& shape) {
  if (shape.dims() == 0) return H5Screate(H5S_SCALAR);
  return H5Screate_simple(shape.dims(), dims_of(shape).data(), nullptr);
}

hid_t make_string_type(size_t length) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, std::max<size_t>(length, 1));
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

hid_t make_dataset_list(const Shape& shape, DType dtype, const FileOptions& options) {
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_obj_track_times(list, false);
  H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
  if (options.compression == 0 || shape.dims() == 0 || shape.elements() == 0) {
    H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY);
    return list;
  }
  // Whole rows where they fit, so that a rank's rows touch few chunks of its neighbours.
  std::array<hsize_t, Shape::kMaxDims> chunk = dims_of(shape);
  int64_t bytes = shape.elements() * static_cast<int64_t>(size_of(dtype));
  for (int axis = 0; axis < shape.dims() && bytes > options.chunk_bytes; ++axis) {
    const int64_t slice = bytes / shape[axis];
    const int64_t keep = std::clamp<int64_t>(options.chunk_bytes / slice, 1, shape[axis]);
    chunk[static_cast<size_t>(axis)] = static_cast<hsize_t>(keep);
    bytes = slice * keep;
  }
  H5Pset_chunk(list, shape.dims(), chunk.data());
  H5Pset_shuffle(list);
  H5Pset_deflate(list, static_cast<unsigned>(options.compression));
  return list;
}

Shape shape_of_space(hid_t space, bool* known) {
  *known = true;
  if (H5Sget_simple_extent_type(space) == H5S_SCALAR) return Shape{};
  const int rank = H5Sget_simple_extent_ndims(space);
  std::array<hsize_t, Shape::kMaxDims> dims{};
  *known = rank >= 1 && rank <= Shape::kMaxDims &&
           H5Sget_simple_extent_dims(space, dims.data(), nullptr) == rank;
  if (!*known) return {};
  const auto d = [&](size_t i) { return static_cast<int64_t>(dims[i]); };
  switch (rank) {
    case 1:
      return {d(0)};
    case 2:
      return {d(0), d(1)};
    case 3:
      return {d(0), d(1), d(2)};
    default:
      return {d(0), d(1), d(2), d(3)};
  }
}

bool dtype_of_file_type(hid_t type, DType* dtype) {
  for (DType t : {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8}) {
    *dtype = t;
    if (H5Tequal(type, file_type(t)) > 0) return true;
  }
  return false;
}

std::vector<std::string> split_padded(const std::vector<char>& bytes, size_t length, size_t count) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < count; ++i) {
    const char* first = bytes.data() + i * length;
    size_t n = length;
    while (n > 0 && first[n - 1] == '\0') --n;
    texts.emplace_back(first, n);
  }
  return texts;
}

std::vector<char> pad(const std::vector<std::string>& texts, size_t length) {
  // Never empty: the library wants an address even for no strings.
  std::vector<char> bytes(texts.size() * length + 1, '\0');
  for (size_t i = 0; i < texts.size(); ++i)
    std::memcpy(bytes.data() + i * length, texts[i].data(), texts[i].size());
  return bytes;
}

size_t longest(const std::vector<std::string>& texts) {
  size_t n = 1;
  for (const std::string& t : texts) n = std::max(n, t.size());
  return n;
}

}  // namespace

Hdf5File::Hdf5File(const std::string& path, Mode mode, const void* mpi_comm, FileOptions options)
    : path_(path), options_(std::move(options)), parallel_(mpi_comm != nullptr) {
  const Turn turn(library());
  silence_error_stack();
  Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // A run folder has its own lock; the library's fails on some shared file systems.
  H5Pset_file_locking(access, false, true);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  if (parallel_) {
    const Hints hints(options_.mpi_io_hints);
    H5Pset_fapl_mpio(access, *static_cast<const MPI_Comm*>(mpi_comm), hints.info());
    H5Pset_all_coll_metadata_ops(access, true);
    H5Pset_coll_metadata_write(access, true);
  }
  Id creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation, false);
  if (mode == Mode::create)
    file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access);
  else
    file_ = H5Fopen(path.c_str(), mode == Mode::read ? H5F_ACC_RDONLY : H5F_ACC_RDWR, access);
  if (file_ < 0) fail(mode == Mode::create ? "cannot be created" : "cannot be opened");
}

Hdf5File::~Hdf5File() {
  const Turn turn(library());
  if (file_ >= 0) H5Fclose(file_);
  H5Eclear2(H5E_DEFAULT);
}

void Hdf5File::fail(const std::string& what) const {
  throw IoError("'{}' {}: {}", path_, what, error_stack_text());
}

void Hdf5File::fail_attribute_type(const std::string& object, const std::string& name) const {
  throw IoError("'{}': attribute {} of {} has another type than it should", path_, name, object);
}

void Hdf5File::flush() {
  const Turn turn(library());
  if (H5Fflush(file_, H5F_SCOPE_GLOBAL) < 0) fail("cannot be flushed");
}

void Hdf5File::close() {
  const Turn turn(library());
  const hid_t file = std::exchange(file_, -1);
  if (file >= 0 && H5Fclose(file) < 0) fail("cannot be closed");
}

int64_t Hdf5File::open_object(const std::string& object) const {
  const Turn turn(library());
  const hid_t id = H5Oopen(file_, object.c_str(), H5P_DEFAULT);
  if (id < 0) fail(fmt::format("has no readable {}", object));
  return id;
}

bool Hdf5File::exists(const std::string& object) const {
  const Turn turn(library());
  // Every step of the path has to be asked for on its own.
  for (size_t slash = object.find('/', 1);; slash = object.find('/', slash + 1)) {
    const std::string step = object.substr(0, slash);
    if (step != "/") {
      const htri_t found = H5Lexists(file_, step.c_str(), H5P_DEFAULT);
      if (found < 0) fail(fmt::format("cannot be searched for {}", object));
      if (found == 0) return false;
    }
    if (slash == std::string::npos) return true;
  }
}

bool Hdf5File::is_group(const std::string& object) const {
  const Turn turn(library());
  Id id(open_object(object), H5Oclose);
  return H5Iget_type(id) == H5I_GROUP;
}

std::vector<std::string> Hdf5File::children(const std::string& group) const {
  const Turn turn(library());
  Id id(open_object(group), H5Oclose);
  std::vector<std::string> names;
  const herr_t status = H5Literate(
      id, H5_INDEX_NAME, H5_ITER_INC, nullptr,
      [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
        static_cast<std::vector<std::string>*>(out)->emplace_back(name);
        return 0;
      },
      &names);
  if (status < 0) fail(fmt::format("cannot list {}", group));
  std::sort(names.begin(), names.end());
  return names;
}

void Hdf5File::create_parents(const std::string& object) {
  const Turn turn(library());
  // One by one: groups that the library makes on the way would carry time stamps.
  const size_t slash = object.rfind('/');
  if (slash == 0) return;
  const std::string parent = object.substr(0, slash);
  if (!exists(parent)) create_group(parent);
}

void Hdf5File::create_group(const std::string& group) {
  const Turn turn(library());
  create_parents(group);
  Id creation(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation, false);
  Id id(H5Gcreate2(file_, group.c_str(), H5P_DEFAULT, creation, H5P_DEFAULT), H5Gclose);
  if (!id.valid()) fail(fmt::format("cannot take {}", group));
}

void Hdf5File::create_dataset(const std::string& dataset, const Shape& shape, DType dtype,
                              bool compressed) {
  const Turn turn(library());
  create_parents(dataset);
  Id creation(make_dataset_list(shape, dtype, compressed ? options_ : FileOptions()), H5Pclose);
  Id space(make_space(shape), H5Sclose);
  Id id(H5Dcreate2(file_, dataset.c_str(), file_type(dtype), space, H5P_DEFAULT, creation,
                   H5P_DEFAULT),
        H5Dclose);
  if (!id.valid()) fail(fmt::format("cannot take {} {}", dataset, shape.text()));
}

DatasetInfo Hdf5File::info(const std::string& dataset) const {
  const Turn turn(library());
  Id id(open_object(dataset), H5Oclose);
  if (H5Iget_type(id) != H5I_DATASET)
    throw IoError("'{}': {} should hold data, but is a group", path_, dataset);
  Id space(H5Dget_space(id), H5Sclose);
  Id type(H5Dget_type(id), H5Tclose);
  if (!space.valid() || !type.valid()) fail(fmt::format("cannot describe {}", dataset));
  DatasetInfo info;
  bool known = false;
  info.shape = shape_of_space(space, &known);
  info.stored_bytes = static_cast<size_t>(H5Dget_storage_size(id));
  if (H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0)
    info.string_length = H5Tget_size(type);
  else
    known = known && dtype_of_file_type(type, &info.dtype);
  if (!known) throw IoError("'{}': {} has a shape or type that Amur never writes", path_, dataset);
  return info;
}

void Hdf5File::write(const std::string& dataset, const Shape& first, ConstTensorView view) {
  const Turn turn(library());
  Id id(H5Dopen2(file_, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!id.valid()) fail(fmt::format("has no writable {}", dataset));
  Id file_space(H5Dget_space(id), H5Sclose);
  const int64_t elements = view.elements();
  Id memory_space(make_space(Shape{elements}), H5Sclose);
  const Shape& shape = view.shape();
  if (elements == 0) {
    H5Sselect_none(file_space);
    H5Sselect_none(memory_space);
  } else if (shape.dims() > 0) {
    H5Sselect_hyperslab(file_space, H5S_SELECT_SET, dims_of(first).data(), nullptr,
                        dims_of(shape).data(), nullptr);
  }
  Id transfer(H5Pcreate(H5P_DATASET_XFER), H5Pclose);
  if (parallel_) H5Pset_dxpl_mpio(transfer, H5FD_MPIO_COLLECTIVE);
  if (H5Dwrite(id, memory_type(view.dtype()), memory_space, file_space, transfer, view.raw()) < 0)
    fail(fmt::format("cannot take the data of {}", dataset));
}

void Hdf5File::read(const std::string& dataset, const Shape& first, TensorView view) const {
  const Turn turn(library());
  if (view.elements() == 0) return;
  Id id(H5Dopen2(file_, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!id.valid()) fail(fmt::format("has no readable {}", dataset));
  Id file_space(H5Dget_space(id), H5Sclose);
  Id memory_space(make_space(Shape{view.elements()}), H5Sclose);
  const Shape& shape = view.shape();
  if (shape.dims() > 0)
    H5Sselect_hyperslab(file_space, H5S_SELECT_SET, dims_of(first).data(), nullptr,
                        dims_of(shape).data(), nullptr);
  if (H5Dread(id, memory_type(view.dtype()), memory_space, file_space, H5P_DEFAULT, view.raw()) < 0)
    fail(fmt::format("cannot give the data of {}", dataset));
}

void Hdf5File::write_text(const std::string& dataset, const std::string& text) {
  const Turn turn(library());
  create_parents(dataset);
  Id creation(make_dataset_list(Shape{}, DType::u8, {}), H5Pclose);
  Id space(H5Screate(H5S_SCALAR), H5Sclose);
  Id type(make_string_type(text.size()), H5Tclose);
  Id id(H5Dcreate2(file_, dataset.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
        H5Dclose);
  const std::vector<char> bytes = pad({text}, std::max<size_t>(text.size(), 1));
  if (!id.valid() || H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0)
    fail(fmt::format("cannot take {}", dataset));
}

void Hdf5File::write_texts(const std::string& dataset, const std::vector<std::string>& texts) {
  const Turn turn(library());
  create_parents(dataset);
  size_t length = longest(texts);
  const Shape shape{static_cast<int64_t>(texts.size())};
  const bool there = exists(dataset);
  if (there) {
    const DatasetInfo old = info(dataset);
    if (old.shape != shape || old.string_length < length)
      throw IoError("'{}': {} has no room for {} texts of {} bytes", path_, dataset, texts.size(),
                    length);
    length = old.string_length;
  }
  Id creation(make_dataset_list(shape, DType::u8, {}), H5Pclose);
  Id space(make_space(shape), H5Sclose);
  Id type(make_string_type(length), H5Tclose);
  Id id(there ? H5Dopen2(file_, dataset.c_str(), H5P_DEFAULT)
              : H5Dcreate2(file_, dataset.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
        H5Dclose);
  const std::vector<char> bytes = pad(texts, length);
  if (!id.valid() || H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0)
    fail(fmt::format("cannot take {}", dataset));
}

std::vector<std::byte> Hdf5File::read_text_bytes(const std::string& dataset) const {
  const Turn turn(library());
  const DatasetInfo what = info(dataset);
  const size_t bytes = what.string_length * static_cast<size_t>(what.shape.elements());
  if (what.string_length == 0 || what.stored_bytes < bytes)
    throw IoError("'{}': {} does not hold text as it should", path_, dataset);
  std::vector<std::byte> out(bytes);
  if (out.empty()) return out;
  Id id(H5Dopen2(file_, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  Id type(make_string_type(what.string_length), H5Tclose);
  if (!id.valid() || H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()) < 0)
    fail(fmt::format("cannot give {}", dataset));
  return out;
}

std::vector<std::string> Hdf5File::read_texts(const std::string& dataset) const {
  const Turn turn(library());
  const DatasetInfo what = info(dataset);
  const std::vector<std::byte> bytes = read_text_bytes(dataset);
  std::vector<char> chars(bytes.size());
  if (!bytes.empty()) std::memcpy(chars.data(), bytes.data(), bytes.size());
  return split_padded(chars, what.string_length, static_cast<size_t>(what.shape.elements()));
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name,
                             const AttributeValue& value) {
  const Turn turn(library());
  Id owner(open_object(object), H5Oclose);
  const auto put = [&](hid_t type, hid_t space, const void* data) {
    const bool there = H5Aexists(owner, name.c_str()) > 0;
    Id id(there ? H5Aopen(owner, name.c_str(), H5P_DEFAULT)
                : H5Acreate2(owner, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
          H5Aclose);
    if (!id.valid() || H5Awrite(id, type, data) < 0)
      fail(fmt::format("cannot take attribute {} of {}", name, object));
  };
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    const size_t length = longest(*texts);
    Id type(make_string_type(length), H5Tclose);
    Id space(make_space(Shape{static_cast<int64_t>(texts->size())}), H5Sclose);
    const std::vector<char> bytes = pad(*texts, length);
    put(type, space, bytes.data());
    return;
  }
  Id space(H5Screate(H5S_SCALAR), H5Sclose);
  if (const auto* text = std::get_if<std::string>(&value)) {
    Id type(make_string_type(text->size()), H5Tclose);
    const std::vector<char> bytes = pad({*text}, std::max<size_t>(text->size(), 1));
    put(type, space, bytes.data());
  } else if (const auto* i = std::get_if<int64_t>(&value)) {
    put(H5T_STD_I64LE, space, i);
  } else if (const auto* u = std::get_if<uint64_t>(&value)) {
    put(H5T_STD_U64LE, space, u);
  } else {
    put(H5T_IEEE_F64LE, space, &std::get<double>(value));
  }
}

bool Hdf5File::has_attribute(const std::string& object, const std::string& name) const {
  const Turn turn(library());
  Id owner(open_object(object), H5Oclose);
  const htri_t found = H5Aexists(owner, name.c_str());
  if (found < 0) fail(fmt::format("cannot be searched for attribute {} of {}", name, object));
  return found > 0;
}

AttributeValue Hdf5File::attribute(const std::string& object, const std::string& name) const {
  const Turn turn(library());
  Id owner(open_object(object), H5Oclose);
  Id id(H5Aopen(owner, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!id.valid()) fail(fmt::format("has no readable attribute {} of {}", name, object));
  Id space(H5Aget_space(id), H5Sclose);
  Id type(H5Aget_type(id), H5Tclose);
  if (!space.valid() || !type.valid())
    fail(fmt::format("cannot describe attribute {} of {}", name, object));
  bool known = false;
  const Shape shape = shape_of_space(space, &known);
  const auto get = [&](hid_t as, void* out) {
    if (H5Aread(id, as, out) < 0) fail(fmt::format("cannot give attribute {} of {}", name, object));
  };
  if (known && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
      shape.dims() <= 1) {
    const size_t length = H5Tget_size(type);
    const auto count = static_cast<size_t>(shape.elements());
    if (count * length > (size_t{1} << 24)) fail_attribute_type(object, name);
    std::vector<char> bytes(count * length);
    Id text_type(make_string_type(length), H5Tclose);
    if (!bytes.empty()) get(text_type, bytes.data());
    std::vector<std::string> texts = split_padded(bytes, length, count);
    if (shape.dims() == 0) return std::move(texts[0]);
    return texts;
  }
  if (known && shape.dims() == 0) {
    if (H5Tequal(type, H5T_STD_I64LE) > 0) {
      int64_t v = 0;
      get(H5T_NATIVE_INT64, &v);
      return v;
    }
    if (H5Tequal(type, H5T_STD_U64LE) > 0) {
      uint64_t v = 0;
      get(H5T_NATIVE_UINT64, &v);
      return v;
    }
    if (H5Tequal(type, H5T_IEEE_F64LE) > 0) {
      double v = 0;
      get(H5T_NATIVE_DOUBLE, &v);
      return v;
    }
  }
  fail_attribute_type(object, name);
}

std::vector<std::pair<std::string, AttributeValue>> Hdf5File::attributes(
    const std::string& object) const {
  const Turn turn(library());
  std::vector<std::string> names;
  {
    Id owner(open_object(object), H5Oclose);
    const herr_t status = H5Aiterate2(
        owner, H5_INDEX_NAME, H5_ITER_INC, nullptr,
        [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
          static_cast<std::vector<std::string>*>(out)->emplace_back(name);
          return 0;
        },
        &names);
    if (status < 0) fail(fmt::format("cannot list the attributes of {}", object));
  }
  std::sort(names.begin(), names.end());
  std::vector<std::pair<std::string, AttributeValue>> out;
  for (const std::string& name : names) out.emplace_back(name, attribute(object, name));
  return out;
}

std::string hdf5_version_text() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
#ifdef H5_HAVE_PARALLEL
  const char* parallel = "parallel";
#else
  const char* parallel = "not parallel";
#endif
  return fmt::format("HDF5 {}.{}.{}, {}", major, minor, release, parallel);
}

}  // namespace amur
