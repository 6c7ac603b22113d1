// Loaded into the processes of one pretend host (LD_PRELOAD) to make it a host that is not well:
//
//   STRANGE_CLOCK=SECONDS   its wall clock is so far ahead; namespaces share that of the machine
//   STRANGE_FILES=PART      of a file whose path has this in it, it goes on seeing the text of the
//                           first time it was opened, as a network file system's cache may
//   STRANGE_THREAD=SECONDS  it is so busy that Open MPI's progress thread first runs after so long,
//                           which is said on stderr
//
// The program under test is what users run: it asks the C library, and this answers.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <string>

namespace {

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

std::string read_all(FILE* file) {
  std::string text;
  char part[4096];
  for (size_t n = 0; (n = std::fread(part, 1, sizeof(part), file)) > 0;) text.append(part, n);
  return text;
}

FILE* file_with(const std::string& text) {
  const int fd = memfd_create("old", 0);
  if (fd < 0 || write(fd, text.data(), text.size()) < 0 || lseek(fd, 0, SEEK_SET) < 0)
    return nullptr;
  return fdopen(fd, "r");
}

FILE* open_file(const char* name, const char* path, const char* mode) {
  static std::mutex mutex;
  static auto* seen = new std::map<std::string, std::string>;
  FILE* file = next<FILE*(const char*, const char*)>(name)(path, mode);
  const char* part = std::getenv("STRANGE_FILES");
  if (!file || !part || mode[0] != 'r' || !std::strstr(path, part)) return file;
  const std::string now = read_all(file);
  std::fclose(file);
  const std::lock_guard lock(mutex);
  if (now.empty()) return file_with(now);  // not yet written
  return file_with(seen->try_emplace(path, now).first->second);
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* time) {
  const int status = next<int(clockid_t, timespec*)>("clock_gettime")(clock, time);
  const char* ahead = std::getenv("STRANGE_CLOCK");
  if (status == 0 && clock == CLOCK_REALTIME && ahead) time->tv_sec += std::atol(ahead);
  return status;
}

// libevent's, in which Open MPI's progress thread spends its life. Other threads come here too, to
// help along; the first that is not the program's own is that one.
int event_base_loop(void* base, int flags) {
  static std::atomic_flag held = ATOMIC_FLAG_INIT;
  const char* late = std::getenv("STRANGE_THREAD");
  Dl_info caller{};
  if (late && gettid() != getpid() && dladdr(__builtin_return_address(0), &caller) != 0 &&
      std::strstr(caller.dli_fname, "libopen-pal") && !held.test_and_set()) {
    std::fputs("Open MPI's progress thread is held\n", stderr);
    // It wants a core, and does not get it.
    for (const std::time_t end = std::time(nullptr) + std::atoi(late); std::time(nullptr) < end;) {
    }
  }
  return next<int(void*, int)>("event_base_loop")(base, flags);
}

FILE* fopen(const char* path, const char* mode) {
  return open_file("fopen", path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  return open_file("fopen64", path, mode);
}

}  // extern "C"
