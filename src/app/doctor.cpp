// `amur doctor`: what the program was built with and what it finds, for reports of problems.
#include <nlohmann/json.hpp>

#include "comm/nccl_search.h"
#include "kernels/gemm.h"
#include "src/app/command_line.h"
#include "src/app/commands.h"
#include "src/app/doctor_cluster.h"
#include "src/app/output.h"
#include "src/core/gpu.h"
#include "src/core/version.h"
#include "src/train/checkpoint/hdf5_file.h"

namespace amur {
namespace {

std::string compiler_text() {
#if defined(__clang__)
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

std::string sanitizer_text() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#elif defined(__SANITIZE_THREAD__)
  return "thread";
#else
  return "none";
#endif
}

std::vector<std::string> processor_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512bf16");
#endif
  return found;
}

std::string value_text(const nlohmann::ordered_json& value) {
  if (!value.is_array()) return value.is_string() ? value.get<std::string>() : value.dump();
  std::string out;
  for (const auto& element : value) out += (out.empty() ? "" : ", ") + element.get<std::string>();
  return out.empty() ? "none" : out;
}

nlohmann::ordered_json collect(Runtime& runtime) {
  nlohmann::ordered_json report;
  report["amur"] = kVersion;
  report["compiler"] = compiler_text();
  report["sanitizer"] = sanitizer_text();
  report["mpi"] = runtime.library_text();
  report["hdf5"] = hdf5_version_text();
  report["matrix products"] = gemm_library_text();
  report["processor features"] = processor_features();
  report["threads"] = runtime.threads_text();
  report["ranks"] = runtime.size();
  report["hosts"] = runtime.hosts_text();
  const GpuSearch search = find_gpus(true);
  std::vector<std::string> devices = {Device::cpu().text()}, gpus;
  for (const GpuInfo& gpu : search.gpus) {
    gpus.push_back(gpu.text());
    if (search.usable()) devices.push_back(Device::cuda(static_cast<int>(gpus.size()) - 1).text());
  }
  report["devices"] = devices;
  report["gpu"] = {{"usable", search.usable()}, {"problem", search.problem},
                   {"remedy", search.remedy},   {"gpus", gpus},
                   {"back end", search.module}, {"libraries", search.libraries}};
  const NcclSearch nccl = find_nccl();
  report["nccl"] = {{"usable", nccl.usable()},
                    {"problem", nccl.problem},
                    {"remedy", nccl.remedy},
                    {"back end", nccl.module},
                    {"libraries", nccl.libraries}};
  return report;
}

std::string nccl_text(const nlohmann::ordered_json& nccl) {
  const auto word = [&](const char* key) { return nccl[key].get<std::string>(); };
  return word("problem").empty() ? word("libraries")
                                 : fmt::format("none: {}; {}", word("problem"), word("remedy"));
}

// "gpu" in two lines.
std::string gpu_text(const nlohmann::ordered_json& gpu) {
  const auto word = [&](const char* key) { return gpu[key].get<std::string>(); };
  std::string text = word("problem").empty()
                         ? value_text(gpu["gpus"])
                         : fmt::format("none: {}; {}", word("problem"), word("remedy"));
  text += fmt::format("\n{:<20} {}", "gpu back end",
                      word("libraries").empty() ? "not loaded" : word("libraries"));
  return text;
}

}  // namespace

int run_doctor(Runtime& runtime, const std::vector<std::string>& args) {
  CommandLine line("doctor", "Says what this program was built with and what it finds here.");
  RunOptions options;
  bool cluster = false;
  std::string folder = "runs";
  line.flag("cluster", cluster,
            "examine the ranks that this is started on, under mpirun or srun: hosts, versions, "
            "network, shared file system, clocks");
  line.option("run-dir", folder, "DIR", "with --cluster: where runs are to be written");
  options.declare_json(line);
  line.footer("With --cluster the exit code is not 0 where a run would fail.");
  const bool help = !line.parse(args);
  if (!help && cluster) {
    const ClusterReport report = examine_cluster(runtime, folder);
    if (runtime.rank() == 0) print_text(options.json ? report.json.dump(2) + "\n" : report.text);
    return report.exit_code;
  }
  if (runtime.rank() != 0) return 0;
  if (help) return print_text(line.help());

  nlohmann::ordered_json report = collect(runtime);
  if (options.json) return print_text(report.dump(2) + "\n");
  std::string text;
  for (const auto& [name, value] : report.items())
    text += fmt::format("{:<20} {}\n", name,
                        name == "gpu"    ? gpu_text(value)
                        : name == "nccl" ? nccl_text(value)
                                         : value_text(value));
  return print_text(text);
}

}  // namespace amur
