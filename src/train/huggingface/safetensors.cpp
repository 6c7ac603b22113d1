#include "src/train/huggingface/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace amur {
namespace {

using HeaderJson = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "files are read as they lie");

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference implementation has it
constexpr const char* kMetadata = "__metadata__";
constexpr size_t kMaxRank = 64;

struct TypeName {
  const char* name;
  size_t bytes;
};
constexpr TypeName kTypes[] = {
    {"F64", 8},  {"F32", 4}, {"F16", 2},     {"BF16", 2},    {"I64", 8},     {"I32", 4},
    {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},     {"U16", 2},     {"U8", 1},
    {"BOOL", 1}, {"C64", 8}, {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
};

// One member of the header as it is read.
struct Member {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape, offsets;
};

// Takes the header apart while it is parsed: nothing of another form gets a place in memory, and
// names that stand twice are seen.
class HeaderReader : public nlohmann::json_sax<HeaderJson> {
 public:
  std::vector<Member> members;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool start_object(size_t /*elements*/) override {
    if (depth_ == 0) return ++depth_;
    if (depth_ == 1) {
      if (key_ != kMetadata) members.push_back({key_, {}, {}, {}});
      return ++depth_;
    }
    return unexpected("an object");
  }
  bool end_object() override { return depth_--; }
  bool key(std::string& name) override {
    key_ = name;
    if (depth_ == 1 && !names_.insert({name, true}).second)
      return fail(fmt::format("'{}' stands twice", printable(name)));
    if (depth_ == 2 && in_metadata() && metadata.contains(name))
      return fail(fmt::format("{}: '{}' stands twice", kMetadata, printable(name)));
    if (depth_ == 1) member_ = name;
    return true;
  }
  bool string(std::string& text) override {
    if (depth_ != 2) return unexpected("text");
    if (in_metadata()) {
      metadata[key_] = text;
      return true;
    }
    if (key_ != "dtype" || members.back().dtype) return unexpected("text");
    members.back().dtype = text;
    return true;
  }
  bool start_array(size_t /*elements*/) override {
    if (depth_ != 2 || in_metadata()) return unexpected("a list");
    auto& list = key_ == "shape" ? members.back().shape : members.back().offsets;
    if ((key_ != "shape" && key_ != "data_offsets") || list) return unexpected("a list");
    list.emplace();
    list_ = &*list;
    return ++depth_;
  }
  bool end_array() override {
    list_ = nullptr;
    return depth_--;
  }
  bool number_unsigned(uint64_t value) override {
    if (list_ == nullptr || list_->size() >= kMaxRank) return unexpected("a number");
    list_->push_back(value);
    return true;
  }
  bool null() override { return unexpected("null"); }
  bool boolean(bool /*value*/) override { return unexpected("true or false"); }
  bool number_integer(int64_t value) override {
    return unexpected(fmt::format("the number {}", value));
  }
  bool number_float(double /*value*/, const std::string& text) override {
    return unexpected(fmt::format("the number {}", text));
  }
  bool binary(binary_t& /*value*/) override { return unexpected("bytes"); }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail(fmt::format("no JSON at byte {} of the header", position));
  }

  static std::string printable(const std::string& name) {
    constexpr size_t kLongest = 100;
    return name.size() <= kLongest ? name : fmt::format("{}...", name.substr(0, kLongest));
  }

 private:
  bool in_metadata() const { return member_ == kMetadata; }
  bool fail(std::string text) {
    if (problem.empty()) problem = std::move(text);
    return false;
  }
  bool unexpected(const std::string& what) {
    return fail(depth_ == 0
                    ? fmt::format("the header is {}", what)
                    : fmt::format("'{}': {} is not expected there", printable(member_), what));
  }

  int depth_ = 0;  // 1: in the header, 2: in one member, 3: in a list of it
  std::string key_, member_;
  std::map<std::string, bool> names_;
  std::vector<uint64_t>* list_ = nullptr;
};

// Elements of these sizes; nothing where they do not fit into 63 bits.
std::optional<uint64_t> product(const std::vector<uint64_t>& shape) {
  uint64_t elements = 1;
  bool overflow = false, zero = false;
  for (const uint64_t n : shape) {
    zero |= n == 0;
    overflow |= n > uint64_t{std::numeric_limits<int64_t>::max()};
    if (!zero) overflow |= __builtin_mul_overflow(elements, n, &elements);
  }
  if (overflow || elements > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
  return zero ? 0 : elements;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31, exponent = half >> 10 & 31,
                 fraction = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {  // a multiple of 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// The elements may lie at any address.
template <class Stored, class T, class F>
void convert(const char* from, T* to, int64_t count, const F& f) {
  for (int64_t i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, from + static_cast<size_t>(i) * sizeof(Stored), sizeof(Stored));
    to[i] = static_cast<T>(f(value));
  }
}

}  // namespace

int64_t SafetensorsInfo::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

size_t safetensors_element_size(std::string_view dtype) {
  for (const TypeName& type : kTypes)
    if (dtype == type.name) return type.bytes;
  return 0;
}

Safetensors::Safetensors(std::string_view file, std::string origin) : origin_(std::move(origin)) {
  if (file.size() < kLengthBytes)
    throw IoError("{}: {} bytes are no safetensors file", origin_, file.size());
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxHeader || length > file.size() - kLengthBytes)
    throw IoError("{}: a header of {} bytes does not fit into the file of {}", origin_, length,
                  file.size());
  const std::string_view header = file.substr(kLengthBytes, length);
  const std::string_view data = file.substr(kLengthBytes + length);
  HeaderReader reader;
  const bool whole =
      header.starts_with('{') && HeaderJson::sax_parse(header.begin(), header.end(), &reader);
  if (!whole)
    throw IoError("{}: {}", origin_,
                  reader.problem.empty() ? "the header does not begin with {" : reader.problem);
  metadata_ = std::move(reader.metadata);

  struct Place {
    uint64_t first, last;
    size_t member;
  };
  std::vector<Place> places;
  for (size_t i = 0; i < reader.members.size(); ++i) {
    const Member& m = reader.members[i];
    const std::string name = HeaderReader::printable(m.name);
    if (!m.dtype || !m.shape || !m.offsets || m.offsets->size() != 2)
      throw IoError("{}: '{}' needs dtype, shape and two data_offsets", origin_, name);
    const size_t size = safetensors_element_size(*m.dtype);
    if (size == 0)
      throw IoError("{}: '{}': unknown dtype '{}'", origin_, name,
                    HeaderReader::printable(*m.dtype));
    const std::optional<uint64_t> elements = product(*m.shape);
    const uint64_t first = (*m.offsets)[0], last = (*m.offsets)[1];
    uint64_t bytes = 0;
    if (!elements || __builtin_mul_overflow(*elements, uint64_t{size}, &bytes))
      throw IoError("{}: '{}': its shape has more elements than can be counted", origin_, name);
    if (first > last || last > data.size())
      throw IoError("{}: '{}': bytes {} to {} lie outside of the {} of the file", origin_, name,
                    first, last, data.size());
    if (last - first != bytes)
      throw IoError("{}: '{}': {} bytes for {} elements of {}", origin_, name, last - first,
                    *elements, *m.dtype);
    places.push_back({first, last, i});
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return std::pair(a.first, a.last) < std::pair(b.first, b.last);
  });
  uint64_t end = 0;
  for (const Place& place : places) {
    Member& m = reader.members[place.member];
    if (place.first != end)
      throw IoError("{}: '{}' begins at byte {}, the tensor before it ends at {}", origin_,
                    HeaderReader::printable(m.name), place.first, end);
    end = place.last;
    Entry entry;
    entry.name = std::move(m.name);
    entry.dtype = std::move(*m.dtype);
    for (const uint64_t n : *m.shape) entry.shape.push_back(static_cast<int64_t>(n));
    entry.bytes = data.substr(place.first, place.last - place.first);
    by_name_[entry.name] = tensors_.size();
    tensors_.push_back(std::move(entry));
  }
  if (end != data.size())
    throw IoError("{}: {} bytes behind the last tensor", origin_, data.size() - end);
}

const Safetensors::Entry* Safetensors::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

void Safetensors::read(const Entry& entry, int64_t first, TensorView values) const {
  const int64_t count = values.elements();
  const auto elements =
      static_cast<int64_t>(entry.bytes.size() / safetensors_element_size(entry.dtype));
  AMUR_CHECK(first >= 0 && count >= 0 && first <= elements && count <= elements - first,
             "elements {}+{} of {} in {}", first, count, elements, entry.name);
  const char* from =
      entry.bytes.data() + static_cast<size_t>(first) * safetensors_element_size(entry.dtype);
  dispatch_f32_f64(values.dtype(), "read", [&]<class T>() {
    const auto same = [](auto x) { return x; };
    if (entry.dtype == "F32") {
      convert<float>(from, values.as<T>(), count, same);
    } else if (entry.dtype == "F64") {
      convert<double>(from, values.as<T>(), count, same);
    } else if (entry.dtype == "F16") {
      convert<uint16_t>(from, values.as<T>(), count, half_to_float);
    } else if (entry.dtype == "BF16") {
      convert<uint16_t>(from, values.as<T>(), count,
                        [](uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); });
    } else {
      throw IoError("{}: '{}' holds {}; F32, F16, BF16 and F64 can be read", origin_, entry.name,
                    entry.dtype);
    }
  });
}

SafetensorsPlan plan_safetensors(std::vector<SafetensorsInfo> tensors,
                                 const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const SafetensorsInfo& a, const SafetensorsInfo& b) {
    const size_t x = safetensors_element_size(a.dtype), y = safetensors_element_size(b.dtype);
    return x != y ? x > y : a.name < b.name;
  });
  SafetensorsPlan plan;
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  int64_t at = 0;
  plan.starts.push_back(at);
  for (const SafetensorsInfo& t : tensors) {
    AMUR_CHECK(safetensors_element_size(t.dtype) > 0, "{}: dtype {}", t.name, t.dtype);
    at += t.elements() * static_cast<int64_t>(safetensors_element_size(t.dtype));
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {plan.starts.back(), at}}};
    plan.starts.push_back(at);
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const uint64_t length = text.size();
  plan.head.assign(reinterpret_cast<const char*>(&length), kLengthBytes);
  plan.head += text;
  for (int64_t& start : plan.starts) start += static_cast<int64_t>(plan.head.size());
  plan.order = std::move(tensors);
  return plan;
}

std::string safetensors_bytes(const std::vector<SafetensorsInfo>& tensors,
                              const std::vector<std::string_view>& contents,
                              const std::map<std::string, std::string>& metadata) {
  std::map<std::string_view, std::string_view> by_name;
  for (size_t i = 0; i < tensors.size(); ++i) by_name[tensors[i].name] = contents.at(i);
  const SafetensorsPlan plan = plan_safetensors(tensors, metadata);
  std::string bytes = plan.head;
  for (size_t i = 0; i < plan.order.size(); ++i) {
    bytes += by_name.at(plan.order[i].name);
    AMUR_CHECK(static_cast<int64_t>(bytes.size()) == plan.starts[i + 1], "{} has another size",
               plan.order[i].name);
  }
  return bytes;
}

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<SafetensorsInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)), plan_(plan_safetensors(std::move(tensors), metadata)) {
  for (size_t i = 0; i < plan_.order.size(); ++i) by_name_[plan_.order[i].name] = i;
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) throw IoError("cannot write '{}': {}", path_, std::strerror(errno));
  try {
    // Behind its end too, so that a full disk is met here where the file system can tell.
    if (::ftruncate(fd_, plan_.starts.back()) != 0)
      throw IoError("cannot write '{}': {}", path_, std::strerror(errno));
    const int reason = ::posix_fallocate(fd_, 0, plan_.starts.back());
    if (reason == ENOSPC || reason == EFBIG)
      throw IoError("no room for '{}' of {:.1f} MB: {}", path_,
                    static_cast<double>(plan_.starts.back()) * 1e-6, std::strerror(reason));
    put(plan_.head.data(), plan_.head.size(), 0);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void SafetensorsWriter::put(const char* data, size_t bytes, int64_t at) {
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd_, data, bytes, at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      throw IoError("cannot write '{}': {}", path_,
                    written < 0 ? std::strerror(errno) : "nothing was taken");
    data += written;
    bytes -= static_cast<size_t>(written);
    at += written;
  }
}

void SafetensorsWriter::write(std::string_view tensor, int64_t first,
                              std::span<const std::byte> elements) {
  const auto it = by_name_.find(tensor);
  AMUR_CHECK(it != by_name_.end(), "'{}' has no tensor {}", path_, tensor);
  const auto size = static_cast<int64_t>(safetensors_element_size(plan_.order[it->second].dtype));
  const int64_t at = plan_.starts[it->second] + first * size;
  AMUR_CHECK(
      first >= 0 && at + static_cast<int64_t>(elements.size()) <= plan_.starts[it->second + 1],
      "{} bytes from element {} on do not fit into {}", elements.size(), first, tensor);
  put(reinterpret_cast<const char*>(elements.data()), elements.size(), at);
}

void SafetensorsWriter::close() {
  const int synced = ::fsync(fd_), sync_reason = errno;
  const int closed = ::close(std::exchange(fd_, -1));
  if (synced != 0)
    throw IoError("cannot bring '{}' to the disk: {}", path_, std::strerror(sync_reason));
  if (closed != 0) throw IoError("cannot close '{}': {}", path_, std::strerror(errno));
}

}  // namespace amur
