#include <dnnl.hpp>

#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "src/core/hash.h"

namespace amur::cpu {
namespace {

using dnnl::memory;

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

memory::data_type type_of(DType t) {
  return t == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// What a primitive is compiled for. It also fixes the number of threads.
struct Key {
  int64_t m, n, k;
  Transpose transpose_a, transpose_b;
  DType ab, c;
  float alpha, beta;
  int threads;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t h = 0;
    for (const int64_t v : {key.m, key.n, key.k, static_cast<int64_t>(key.transpose_a),
                            static_cast<int64_t>(key.transpose_b), static_cast<int64_t>(key.ab),
                            static_cast<int64_t>(key.c), int64_t{std::bit_cast<int32_t>(key.alpha)},
                            int64_t{std::bit_cast<int32_t>(key.beta)}, int64_t{key.threads}})
      h = mix64(h ^ static_cast<uint64_t>(v)) + 0x9e3779b97f4a7c15u;
    return h;
  }
};

struct Product {
  memory::desc a, b, c, scratchpad;
  dnnl::matmul primitive;
};

Product compile(const Key& key) {
  const auto matrix = [](int64_t rows, int64_t columns, DType type, Transpose transposed) {
    const memory::dims strides =
        transposed == Transpose::yes ? memory::dims{1, rows} : memory::dims{columns, 1};
    return memory::desc({rows, columns}, type_of(type), strides);
  };
  Product p;
  p.a = matrix(key.m, key.k, key.ab, key.transpose_a);
  p.b = matrix(key.k, key.n, key.ab, key.transpose_b);
  p.c = matrix(key.m, key.n, key.c, Transpose::no);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.alpha != 1) attributes.set_output_scales(0, {key.alpha});
  if (key.beta != 0) {
    dnnl::post_ops sum;
    sum.append_sum(key.beta);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::desc description(p.a, p.b, p.c);
  const dnnl::matmul::primitive_desc compiled(description, attributes, engine());
  p.scratchpad = compiled.scratchpad_desc();
  p.primitive = dnnl::matmul(compiled);
  return p;
}

// The most recently used products: chunks differ in their number of tokens, so there is no end of
// shapes.
class Cache {
 public:
  // The library's own cache would keep a thousand more.
  Cache() { dnnl::set_primitive_cache_capacity(0); }

  Product find(const Key& key) {
    {
      std::lock_guard lock(mutex_);
      if (const auto it = index_.find(key); it != index_.end()) {
        entries_.splice(entries_.begin(), entries_, it->second);
        return it->second->second;
      }
    }
    Product product = compile(key);
    std::lock_guard lock(mutex_);
    if (!index_.contains(key)) {
      entries_.emplace_front(key, product);
      index_[key] = entries_.begin();
      if (entries_.size() > kMost) {
        index_.erase(entries_.back().first);
        entries_.pop_back();
      }
    }
    return product;
  }

 private:
  static constexpr size_t kMost = 128;
  using Entries = std::list<std::pair<Key, Product>>;
  std::mutex mutex_;
  Entries entries_;  // newest first
  std::unordered_map<Key, Entries::iterator, KeyHash> index_;
};

}  // namespace

void dnnl_gemm(const Gemm& g) {
  static Cache cache;
  try {
    const Product p =
        cache.find({g.m, g.n, g.k, g.transpose_a, g.transpose_b, g.a.dtype(), g.c.dtype(),
                    static_cast<float>(g.alpha), static_cast<float>(g.beta), compute_threads()});
    // oneDNN does not write to its sources.
    const memory a(p.a, engine(), const_cast<void*>(g.a.raw()));
    const memory b(p.b, engine(), const_cast<void*>(g.b.raw()));
    const memory c(p.c, engine(), g.c.raw());
    // One for all products: a primitive's own would stay with it.
    thread_local std::vector<std::byte> room;
    constexpr size_t kAlignment = 64;
    size_t space = p.scratchpad.get_size() + kAlignment;
    if (room.size() < space) room.resize(space);
    void* aligned = room.data();
    std::align(kAlignment, p.scratchpad.get_size(), aligned, space);
    const memory scratchpad(p.scratchpad, engine(), aligned);
    dnnl::stream stream(engine());
    p.primitive.execute(stream, {{DNNL_ARG_SRC, a},
                                 {DNNL_ARG_WEIGHTS, b},
                                 {DNNL_ARG_DST, c},
                                 {DNNL_ARG_SCRATCHPAD, scratchpad}});
    stream.wait();
  } catch (const dnnl::error& e) {
    throw InternalError(fmt::format("oneDNN: {} (status {}) for a product of {} x {} x {}",
                                    e.what(), static_cast<int>(e.status), g.m, g.n, g.k));
  }
}

bool prefers_dnnl(const Gemm& g) {
#if defined(_OPENMP)
  // On one thread OpenBLAS is as fast and compiles nothing for a new number of tokens. On several
  // it brings threads of its own beside OpenMP's, and the idle ones of either spin on the other's
  // cores: its products then take up to twice as long. Small products are not worth compiling.
  constexpr double kWorthCompiling = double{1 << 26};
  return compute_threads() > 1 &&
         static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k) >=
             kWorthCompiling;
#else
  static_cast<void>(g);
  return false;
#endif
}

std::string dnnl_text() {
  const dnnl_version_t* v = dnnl::version();
  const char* isa = "generic";
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      isa = "sse41";
      break;
    case dnnl::cpu_isa::avx:
      isa = "avx";
      break;
    case dnnl::cpu_isa::avx2:
      isa = "avx2";
      break;
    case dnnl::cpu_isa::avx2_vnni:
      isa = "avx2_vnni";
      break;
    case dnnl::cpu_isa::avx512_core:
      isa = "avx512_core";
      break;
    case dnnl::cpu_isa::avx512_core_vnni:
      isa = "avx512_core_vnni";
      break;
    case dnnl::cpu_isa::avx512_core_bf16:
      isa = "avx512_core_bf16";
      break;
    case dnnl::cpu_isa::avx512_core_amx:
      isa = "avx512_core_amx";
      break;
    default:
      break;
  }
  return fmt::format("oneDNN {}.{}.{} ({})", v->major, v->minor, v->patch, isa);
}

}  // namespace amur::cpu
