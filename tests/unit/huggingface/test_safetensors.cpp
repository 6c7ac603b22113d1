// The reader of safetensors: what it reads, what it refuses, and that damaged files are one of
// both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>

#include "src/core/random.h"
#include "src/train/huggingface/safetensors.h"

namespace amur {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string bytes_of(const auto& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])};
}

// A copy of exactly this size on the heap, so that a sanitizer sees a read behind its end.
struct ExactCopy {
  explicit ExactCopy(const std::string& bytes)
      : size(bytes.size()), data(std::make_unique<char[]>(std::max<size_t>(size, 1))) {
    std::copy(bytes.begin(), bytes.end(), data.get());
  }
  std::string_view view() const { return {data.get(), size}; }
  size_t size;
  std::unique_ptr<char[]> data;
};

std::string refusal_of(const std::string& bytes) {
  const ExactCopy copy(bytes);
  try {
    const Safetensors file(copy.view(), "f");
  } catch (const IoError& e) {
    return e.what();
  }
  return "";
}

std::string example() {
  const std::array<float, 6> a = {1, -2, 3.5F, 0, 1e-30F, 7};
  const std::array<int64_t, 2> b = {1, -1};
  const std::array<uint16_t, 3> c = {0x3c00, 0xc000, 0x0001};
  const auto info = [](const char* name, const char* dtype, std::vector<int64_t> shape) {
    SafetensorsInfo i;
    i.name = name;
    i.dtype = dtype;
    i.shape = std::move(shape);
    return i;
  };
  const std::string ab = bytes_of(a), bb = bytes_of(b), cb = bytes_of(c);
  return safetensors_bytes(
      {info("c", "F16", {3}), info("a\xC3\xA9", "F32", {2, 3}), info("b", "I64", {1, 2}),
       info("d", "F32", {0, 7}), info("e", "F32", {})},
      {cb, ab, bb, "", std::string_view(ab).substr(0, 4)}, {{"format", "pt"}});
}

// Everything that the file says, and every element that can be read.
void read_all(const Safetensors& file) {
  for (const Safetensors::Entry& entry : file.tensors()) {
    ASSERT_EQ(file.find(entry.name), &entry);
    ASSERT_EQ(static_cast<size_t>(entry.elements()) * safetensors_element_size(entry.dtype),
              entry.bytes.size());
    std::vector<double> values(static_cast<size_t>(entry.elements()));
    try {
      file.read(entry, 0, TensorView(values.data(), Shape{entry.elements()}, DType::f64));
    } catch (const IoError& e) {
      ASSERT_THAT(e.what(), HasSubstr("can be read"));
    }
    uint64_t sum = 0;
    for (const char c : entry.bytes) sum += static_cast<unsigned char>(c);
    ASSERT_LE(sum, 255 * entry.bytes.size());
  }
}

TEST(Safetensors, ReadsWhatWasWritten) {
  const std::string bytes = example();
  const Safetensors file(bytes, "f");
  std::vector<std::string> names;
  for (const auto& t : file.tensors()) names.push_back(t.name);
  // 8-byte elements first, then by name.
  EXPECT_THAT(names, ElementsAre("b", "a\xC3\xA9", "d", "e", "c"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.find("nothing"), nullptr);
  std::vector<float> v(2);
  file.read(*file.find("a\xC3\xA9"), 2, TensorView(v.data(), Shape{2}, DType::f32));
  EXPECT_THAT(v, ElementsAre(3.5F, 0));
  v.resize(3);
  file.read(*file.find("c"), 0, TensorView(v.data(), Shape{3}, DType::f32));
  EXPECT_THAT(v, ElementsAre(1, -2, 0x1p-24F));
  EXPECT_THROW(file.read(*file.find("b"), 0, TensorView(v.data(), Shape{2}, DType::f32)), IoError);
  EXPECT_THROW(file.read(*file.find("c"), 1, TensorView(v.data(), Shape{3}, DType::f32)),
               InternalError);
  EXPECT_EQ(bytes.size() % 2, 0u);
}

// All 65536 of both half precisions, against their definition.
TEST(Safetensors, ConvertsEveryHalf) {
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  SafetensorsInfo half, brain;
  half.name = "h";
  half.dtype = "F16";
  brain.name = "b";
  brain.dtype = "BF16";
  half.shape = brain.shape = {1 << 16};
  const std::string raw = bytes_of(bits), bytes = safetensors_bytes({half, brain}, {raw, raw}, {});
  const Safetensors file(bytes, "f");
  std::vector<float> h(bits.size()), b(bits.size());
  file.read(*file.find("h"), 0, TensorView(h.data(), Shape{1 << 16}, DType::f32));
  file.read(*file.find("b"), 0, TensorView(b.data(), Shape{1 << 16}, DType::f32));
  for (size_t i = 0; i < bits.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31), fraction = static_cast<int>(i & 1023);
    const double sign = i >> 15 ? -1 : 1;
    const double value = exponent == 31  ? (fraction ? NAN : INFINITY)
                         : exponent == 0 ? std::ldexp(fraction, -24)
                                         : std::ldexp(1024 + fraction, exponent - 25);
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(h[i]));
    else
      EXPECT_EQ(h[i], static_cast<float>(sign * value)) << i;
    EXPECT_EQ(std::bit_cast<uint32_t>(b[i]), i << 16);
  }
}

TEST(Safetensors, RefusesWhatDoesNotFit) {
  const auto one = [](const std::string& member, const std::string& data = "01234567") {
    return refusal_of(file_of("{" + member + "}", data));
  };
  const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_EQ(one(good), "");
  EXPECT_EQ(one(good + "  "), "");
  EXPECT_THAT(refusal_of("1234567"), HasSubstr("no safetensors file"));
  EXPECT_THAT(refusal_of(file_of("{}", "").substr(0, 9)), HasSubstr("does not fit"));
  EXPECT_THAT(refusal_of(std::string(8, '\xff') + "{}"), HasSubstr("does not fit"));
  EXPECT_THAT(refusal_of(file_of("", "")), HasSubstr("does not begin with {"));
  EXPECT_THAT(refusal_of(file_of(" {}", "")), HasSubstr("does not begin with {"));
  EXPECT_THAT(refusal_of(file_of("{", "")), HasSubstr("no JSON at byte"));
  EXPECT_THAT(refusal_of(file_of("{}", "x")), HasSubstr("1 bytes behind the last tensor"));
  EXPECT_THAT(one(good + "," + good), HasSubstr("'a' stands twice"));
  EXPECT_THAT(one(R"("a":3)"), HasSubstr("a number is not expected"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32"})"), HasSubstr("needs dtype, shape and two"));
  EXPECT_THAT(one(R"("a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("unknown dtype 'F33'"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
              HasSubstr("8 bytes for 3 elements"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
              HasSubstr("the number -2 is not expected"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
              HasSubstr("is not expected"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]})"),
              HasSubstr("outside of the 8"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
              HasSubstr("outside of"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})"),
              HasSubstr("more elements than can be counted"));
  EXPECT_THAT(one(R"("a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]})"),
              HasSubstr("more elements than can be counted"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})"),
              HasSubstr("begins at byte 4"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})"),
              HasSubstr("ends at 8"));
  EXPECT_THAT(one(R"("a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})"),
              HasSubstr("is not expected"));
  EXPECT_THAT(one(good + R"(,"__metadata__":{"x":1})"), HasSubstr("is not expected"));
  EXPECT_THAT(one(R"("a":)" + std::string(100000, '[')), HasSubstr("is not expected"));
  EXPECT_THAT(one(good + R"(,")" + "\xff" + R"(":{})"), HasSubstr("no JSON"));
}

// Bytes changed, inserted, removed, cut off and copied, most of them in the header, where numbers
// and brackets are worth more than letters.
std::string mutated(const std::string& original, RandomKey key) {
  std::string bytes = original;
  uint64_t counter = 0;
  const auto below = [&](uint64_t n) { return key.below(counter++, n); };
  uint64_t length = 0;
  std::copy_n(original.data(), 8, reinterpret_cast<char*>(&length));
  constexpr std::string_view kUseful = "0123456789[]{}\",:-.e \\\xff";
  for (uint64_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
    const uint64_t head = std::min<uint64_t>(bytes.size(), 8 + length);
    const size_t at = below(8) == 0 ? below(bytes.size()) : below(head);
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = kUseful[below(kUseful.size())];
        break;
      case 2:
        bytes.insert(at, 1, kUseful[below(kUseful.size())]);
        break;
      case 3:
        bytes.erase(at, 1 + below(3));
        break;
      case 4:
        bytes.resize(at);
        break;
      case 5:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(64)));
        break;
      default:  // the length of the header
        bytes[below(std::min<uint64_t>(bytes.size(), 8))] = static_cast<char>(below(256));
    }
  }
  // As often as not the length is put right again, so that what is behind it is looked at.
  if (bytes.size() > 8 && below(2) == 0) {
    const size_t end = bytes.rfind('}', std::min<size_t>(bytes.size() - 1, 8 + length + 64));
    if (end != std::string::npos && end >= 8) {
      const uint64_t now = end + 1 - 8;
      std::copy_n(reinterpret_cast<const char*>(&now), 8, bytes.data());
    }
  }
  return bytes;
}

TEST(Safetensors, DamagedFilesAreRefusedOrRead) {
  const char* asked = std::getenv("AMUR_MUTATIONS");
  const uint64_t mutations = asked ? std::strtoull(asked, nullptr, 10) : 4000;
  const std::string original = example();
  const RandomKey key = RandomKey(7).fold(static_cast<uint64_t>(RandomPurpose::probe));
  uint64_t refused = 0;
  for (uint64_t i = 0; i < mutations && !::testing::Test::HasFailure(); ++i) {
    const ExactCopy copy(mutated(original, key.fold(i)));
    try {
      const Safetensors file(copy.view(), "f");
      read_all(file);
    } catch (const IoError& e) {
      ASSERT_GT(std::string(e.what()).size(), 10u);
      ++refused;
    }
  }
  EXPECT_GT(refused, mutations / 2);
  EXPECT_LT(refused, mutations);
}

TEST(Safetensors, TheWriterGivesTheSameFile) {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("amur-{}", ::getpid());
  const std::string bytes = example();
  const Safetensors file(bytes, "f");
  std::vector<SafetensorsInfo> infos(file.tensors().begin(), file.tensors().end());
  SafetensorsWriter writer(path.string(), infos, file.metadata());
  for (auto entry = file.tensors().rbegin(); entry != file.tensors().rend(); ++entry) {
    const auto size = static_cast<int64_t>(safetensors_element_size(entry->dtype));
    const auto all = std::as_bytes(std::span(entry->bytes));
    for (int64_t i = entry->elements() - 1; i >= 0; --i)
      writer.write(entry->name, i,
                   all.subspan(static_cast<size_t>(i * size), static_cast<size_t>(size)));
  }
  writer.close();
  std::ifstream in(path, std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), bytes);
  std::filesystem::remove(path);
  EXPECT_THROW(SafetensorsWriter("/nowhere/x", infos, {}), IoError);
}

}  // namespace
}  // namespace amur
