// The threads of a block as fibers.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda_runtime.h>
#include <fmt/format.h>

// Saves what a function has to keep and the stack's place in *save, and goes on with `load`.
extern "C" void amur_emulation_switch(void** save, void* load);
asm(R"(
.text
.hidden amur_emulation_switch
.globl amur_emulation_switch
.type amur_emulation_switch, @function
amur_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size amur_emulation_switch, .-amur_emulation_switch
)");

namespace amur::emulation {
namespace {

constexpr size_t kPage = 4096, kStack = 64 << 10;
constexpr size_t kSharedSpace = 256 << 10, kGuard = 64;  // bytes
constexpr unsigned char kPoison = 0xff;                  // NaN in every type

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool exists;
  void make() const {
    if (exists)
      std::memcpy(to, from, bytes);
    else
      std::memset(to, 0, bytes);
  }
};

enum class State : uint8_t { ready, at_barrier, in_warp, ended };

struct Thread {
  void* stack = nullptr;  // where it goes on
  State state = State::ended;
  Where where;
  std::vector<Copy> copies;
};

struct Warp {
  Lane lanes[32];
  WarpInstruction* run = nullptr;
  unsigned arrived = 0;
};

// Static shared arrays of a block, with guards behind them.
struct Shared {
  const void* tag;
  size_t at, bytes;
};

std::byte* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(memory);
}
void forbid(std::byte* memory) {
  if (mprotect(memory, kPage, PROT_NONE) != 0) std::abort();
}

Thread threads[kMostThreads];
Warp warps[kMostThreads / 32];
std::byte* stacks = nullptr;        // kMostThreads of kStack, the lowest page forbidden
std::byte* shared_space = nullptr;  // static arrays, a forbidden page, dynamic, a forbidden page
size_t made = 0, count = 0;         // stacks that are begun; threads of the block
size_t current = 0, waiting = 0;    // the thread that runs; those at the barrier
void* scheduler = nullptr;
const std::function<void()>* body = nullptr;
const Launch* launched = nullptr;
Direction way = Direction::forward;
std::vector<Shared> arrays;
std::byte* dynamic = nullptr;
std::string failure;
sigjmp_buf fault_return;

std::string at(const Where& where) {
  const std::string_view file = where.file_name();
  return fmt::format("{}:{}", file.substr(file.find_last_of('/') + 1), where.line());
}
void tell(const std::string& what, bool of_a_thread) {
  failure = launched->kernel;
  if (count > 0) failure += fmt::format(", block ({}, {}, {})", blockIdx.x, blockIdx.y, blockIdx.z);
  if (count > 0 && of_a_thread)
    failure += fmt::format(", thread ({}, {}, {})", threadIdx.x, threadIdx.y, threadIdx.z);
  failure += fmt::format(": {}", what);
}
void yield() {
  amur_emulation_switch(&threads[current].stack, scheduler);
}

void main_of_thread() {
  for (;;) {
    (*body)();
    Thread& mine = threads[current];
    if (!mine.copies.empty()) fail("it ended with copies under way");
    mine.state = State::ended;
    yield();
  }
}

// Tops are staggered, or all threads would share a few lines of the cache.
void make_stacks() {
  if (!stacks) {
    stacks = map(kMostThreads * kStack);
    for (size_t i = 0; i < kMostThreads; ++i) forbid(stacks + i * kStack);
  }
  for (; made < count; ++made) {
    auto** top = reinterpret_cast<void**>(stacks + (made + 1) * kStack - 64 * (1 + made % 31));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(main_of_thread);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    threads[made].stack = top;
  }
}

// The dynamic part ends where the forbidden page begins, to 16 bytes.
void make_shared_memory() {
  if (!shared_space) {
    shared_space = map(2 * kSharedSpace + 2 * kPage);
    forbid(shared_space + kSharedSpace);
    forbid(shared_space + 2 * kSharedSpace + kPage);
  }
  const size_t bytes = (launched->shared + 15) / 16 * 16;
  dynamic = shared_space + 2 * kSharedSpace + kPage - bytes;
  std::memset(dynamic, kPoison, bytes);
  std::memset(dynamic - kGuard, kPoison, kGuard);
  arrays.clear();
}
size_t end_of_arrays() {
  return arrays.empty() ? 0 : (arrays.back().at + arrays.back().bytes + kGuard + 15) / 16 * 16;
}
bool poisoned(const std::byte* begin, const std::byte* end) {
  for (; begin < end; ++begin)
    if (*begin != std::byte{kPoison}) return false;
  return true;
}
bool guards_hold() {
  for (const Shared& array : arrays)
    if (!poisoned(shared_space + array.at + array.bytes,
                  shared_space + array.at + array.bytes + kGuard))
      return false;
  const std::byte* end = dynamic + launched->shared;
  return poisoned(dynamic - kGuard, dynamic) &&
         poisoned(end, dynamic + (launched->shared + 15) / 16 * 16);
}

std::string stuck() {
  std::string text = "its threads wait for each other:";
  for (size_t first = 0; first < count;) {
    const Thread& t = threads[first];
    size_t end = first + 1;
    while (end < count && threads[end].state == t.state &&
           (t.state == State::ended || threads[end].where.line() == t.where.line()))
      ++end;
    text += fmt::format(" {}-{} {}", first, end - 1,
                        t.state == State::ended ? "have ended"
                        : t.state == State::at_barrier
                            ? fmt::format("at the barrier {}", at(t.where))
                            : fmt::format("at the warp instruction {}", at(t.where)));
    first = end;
    text += first < count ? "," : "";
  }
  return text;
}

// Runs a thread until it waits or ends; false where it cannot run.
bool run_thread(size_t i) {
  if (threads[i].state != State::ready) return false;
  const unsigned width = launched->block.x, height = launched->block.y;
  const auto place = static_cast<unsigned>(i);
  current = i;
  threadIdx = {place % width, place / width % height, place / width / height};
  amur_emulation_switch(&scheduler, threads[i].stack);
  return true;
}

// Warps are as far apart as barriers let them: each one runs until all of it waits.
bool run_warp(size_t first) {
  const size_t lanes = std::min<size_t>(32, count - first);
  bool some = false;
  for (bool ran = true; ran;) {
    ran = false;
    for (size_t step = 0; step < lanes; ++step) {
      ran |= run_thread(first + (way == Direction::forward ? step : lanes - 1 - step));
      if (!failure.empty()) return true;
    }
    some |= ran;
  }
  return some;
}

void run_block() {
  make_shared_memory();
  waiting = 0;
  for (Warp& warp : warps) warp.arrived = 0;
  for (size_t i = 0; i < count; ++i) threads[i].state = State::ready;
  const size_t all = (count + 31) / 32;
  for (bool some = true; some;) {
    some = false;
    for (size_t step = 0; step < all; ++step) {
      some |= run_warp(32 * (way == Direction::forward ? step : all - 1 - step));
      if (!failure.empty()) return;
    }
  }
  const auto waits = [](const Thread& t) { return t.state != State::ended; };
  if (std::any_of(threads, threads + count, waits)) return tell(stuck(), false);
  if (!guards_hold()) tell("it wrote behind or before its shared memory", false);
}

// The kernel's thread is left where it is.
void on_fault(int, siginfo_t* info, void*) {
  const auto* place = static_cast<const std::byte*>(info->si_addr);
  const std::byte* end = shared_space + 2 * kSharedSpace + 2 * kPage;
  const char* what = "it touches {}, which is no memory of its device";
  if (place >= shared_space && place < end)
    what = "it touches {}, outside of its shared memory";
  else if (place >= stacks && place < stacks + kMostThreads * kStack)
    what = "it touches {}: its stack has overflown";
  tell(fmt::format(fmt::runtime(what), info->si_addr), true);
  siglongjmp(fault_return, 1);
}

class FaultHandler {
 public:
  FaultHandler() {
    static std::byte* stack = map(64 << 10);
    stack_t mine{};
    mine.ss_sp = stack;
    mine.ss_size = 64 << 10;
    sigaltstack(&mine, &stack_before_);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &action_before_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &action_before_, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  stack_t stack_before_{};
  struct sigaction action_before_ {};
};

void run_blocks() {
  const unsigned width = launched->grid.x, height = launched->grid.y;
  const size_t blocks = launched->grid.count();
  for (size_t step = 0; step < blocks && failure.empty(); ++step) {
    const size_t i = way == Direction::forward ? step : blocks - 1 - step;
    const auto place = static_cast<unsigned>(i);
    blockIdx = {place % width, place / width % height, place / width / height};
    run_block();
  }
}

}  // namespace

void fail(const std::string& what) {
  tell(what, true);
  if (count == 0) siglongjmp(fault_return, 1);
  yield();
  std::abort();  // nobody goes on with it
}

void barrier(Where where) {
  Thread& mine = threads[current];
  if (waiting > 0) {
    for (size_t i = 0; i < count; ++i)
      if (threads[i].state == State::at_barrier && threads[i].where.line() != where.line())
        fail(fmt::format("it waits at the barrier {}, thread {} at the barrier {}", at(where), i,
                         at(threads[i].where)));
  }
  if (++waiting == count) {
    waiting = 0;
    for (size_t i = 0; i < count; ++i)
      if (threads[i].state == State::at_barrier) threads[i].state = State::ready;
    return;
  }
  mine.where = where;
  mine.state = State::at_barrier;
  yield();
}

void with_warp(Lane mine, WarpInstruction* run, Where where) {
  const size_t first = current / 32 * 32;
  Warp& warp = warps[current / 32];
  if (warp.arrived == 0) {
    warp.run = run;
  } else {
    for (size_t i = first; i < std::min(count, first + 32); ++i)
      if (threads[i].state == State::in_warp &&
          (warp.run != run || threads[i].where.line() != where.line()))
        fail(fmt::format("it is at the warp instruction {}, lane {} at {}", at(where), i - first,
                         at(threads[i].where)));
  }
  warp.lanes[current - first] = mine;
  threads[current].where = where;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    run(warp.lanes);
    for (size_t i = first; i < first + 32; ++i) threads[i].state = State::ready;
    return;
  }
  threads[current].state = State::in_warp;
  yield();
}

void* static_shared(const void* tag, size_t bytes) {
  for (const Shared& array : arrays)
    if (array.tag == tag) return shared_space + array.at;
  size_t all = bytes;
  for (const Shared& array : arrays) all += array.bytes;
  if (all > kUnaskedSharedMemory || launched->shared + all > kMostSharedMemory)
    fail(fmt::format("it has {} bytes of shared memory, more than a block may have",
                     launched->shared + all));
  const size_t at = end_of_arrays();
  std::memset(shared_space + at, kPoison, bytes + kGuard);
  arrays.push_back({tag, at, bytes});
  return shared_space + at;
}
void* dynamic_shared() {
  return dynamic;
}

void copy_async(void* to, const void* from, size_t bytes, bool exists) {
  const Copy copy{to, from, bytes, exists};
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fail(fmt::format("a copy of {} bytes has a misaligned address", bytes));
  if (way == Direction::backward) copy.make();
  threads[current].copies.push_back(copy);
}
void wait_for_copies() {
  std::vector<Copy>& copies = threads[current].copies;
  if (way == Direction::forward)
    for (const Copy& copy : copies) copy.make();
  copies.clear();
}

std::string run_on_device(const char* name, const std::function<void()>& operation) {
  const Launch launch{name, {}, {}};
  launched = &launch;
  count = 0;
  failure.clear();
  const FaultHandler handler;
  if (sigsetjmp(fault_return, 1) == 0) operation();
  return failure;
}

std::string run_kernel(const Launch& launch, Direction direction,
                       const std::function<void()>& thread) {
  launched = &launch;
  way = direction;
  body = &thread;
  count = launch.block.count();
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  failure.clear();
  make_stacks();
  {
    const FaultHandler handler;
    if (sigsetjmp(fault_return, 1) == 0) run_blocks();
  }
  if (!failure.empty()) {  // threads were left where they were
    made = 0;
    for (Thread& t : threads) t.copies.clear();
  }
  return failure;
}

}  // namespace amur::emulation
