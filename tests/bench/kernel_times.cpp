// Adds up the time of every kernel, copy and fill on a GPU by name, for any program, which knows
// nothing of it:
//
//   CUDA_INJECTION64_PATH=$PWD/libamur_kernel_times.so AMUR_KERNEL_TIMES=times.json PROGRAM ...
//
// The driver loads this library when it starts and calls InitializeInjection; CUPTI then hands over
// records of what ran. At the program's end they are written as {"names": [[name, calls, seconds],
// ...], "dropped": records that were lost}, the longest first.
#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr size_t kBuffer = size_t{4} << 20;

struct Sum {
  uint64_t calls = 0, nanoseconds = 0;
};

// Never destroyed: records may still come while the program ends.
struct Times {
  std::mutex mutex;
  std::map<std::string, Sum> by_name;
  size_t dropped = 0;
};
Times& times() {
  static Times* all = new Times;
  return *all;
}

bool succeeded(CUptiResult result, const char* call) {
  if (result == CUPTI_SUCCESS) return true;
  const char* text = nullptr;
  cuptiGetResultString(result, &text);
  std::fprintf(stderr, "kernel times: %s: %s\n", call, text ? text : "unknown error");
  return false;
}

void give_buffer(uint8_t** buffer, size_t* size, size_t* records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBuffer));
  *size = *buffer ? kBuffer : 0;
  *records = 0;  // as many as fit
}

template <class Record>
void add(const CUpti_Activity* activity, const char* name) {
  const auto* record = reinterpret_cast<const Record*>(activity);
  Sum& sum = times().by_name[name];
  ++sum.calls;
  sum.nanoseconds += record->end - record->start;
}

const char* copy_name(const CUpti_Activity* activity) {
  switch (reinterpret_cast<const CUpti_ActivityMemcpy6*>(activity)->copyKind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
      return "copy to the GPU";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
      return "copy from the GPU";
    default:
      return "copy on the GPU";
  }
}

void take_buffer(CUcontext context, uint32_t stream, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard lock(times().mutex);
  CUpti_Activity* activity = nullptr;
  while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &activity) == CUPTI_SUCCESS) {
    switch (activity->kind) {
      case CUPTI_ACTIVITY_KIND_KERNEL:
      case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const char* name = reinterpret_cast<const CUpti_ActivityKernel10*>(activity)->name;
        add<CUpti_ActivityKernel10>(activity, name ? name : "a kernel without a name");
        break;
      }
      case CUPTI_ACTIVITY_KIND_MEMCPY:
        add<CUpti_ActivityMemcpy6>(activity, copy_name(activity));
        break;
      case CUPTI_ACTIVITY_KIND_MEMSET:
        add<CUpti_ActivityMemset4>(activity, "fill");
        break;
      default:
        break;
    }
  }
  size_t dropped = 0;
  if (cuptiActivityGetNumDroppedRecords(context, stream, &dropped) == CUPTI_SUCCESS)
    times().dropped += dropped;
  std::free(buffer);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= ' ') out += c;
  }
  return out + '"';
}

void write_times() {
  succeeded(cuptiActivityFlushAll(1), "cuptiActivityFlushAll");
  const char* path = std::getenv("AMUR_KERNEL_TIMES");
  const std::lock_guard lock(times().mutex);
  std::vector<std::pair<std::string, Sum>> sorted(times().by_name.begin(), times().by_name.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.nanoseconds > b.second.nanoseconds;
  });
  std::FILE* file = path ? std::fopen(path, "w") : nullptr;
  if (!file) {
    std::fprintf(stderr, "kernel times: AMUR_KERNEL_TIMES names no file that can be written\n");
    return;
  }
  std::fputs("{\"names\": [", file);
  const char* separator = "";
  for (const auto& [name, sum] : sorted) {
    std::fprintf(file, "%s\n[%s, %llu, %.9f]", separator, quoted(name).c_str(),
                 static_cast<unsigned long long>(sum.calls),
                 1e-9 * static_cast<double>(sum.nanoseconds));
    separator = ",";
  }
  std::fprintf(file, "],\n\"dropped\": %zu}\n", times().dropped);
  if (std::fclose(file) != 0) std::fprintf(stderr, "kernel times: %s cannot be written\n", path);
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) int InitializeInjection();
__attribute__((visibility("default"))) int InitializeInjection() {
  const bool started =
      succeeded(cuptiActivityRegisterCallbacks(give_buffer, take_buffer),
                "cuptiActivityRegisterCallbacks") &&
      succeeded(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "kernels") &&
      succeeded(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY), "copies") &&
      succeeded(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET), "fills");
  if (started) std::atexit(write_times);
  return 1;  // the program runs in any case
}
}
