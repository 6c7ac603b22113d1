"""What a device can do with Amur, in one run: steps, loss stage, kernels, profiles, quick start.

  device_benchmarks.py benchmarks BUILD OUT [--device cuda|cpu] [--small] [--limit SECONDS]
  device_benchmarks.py training BUILD OUT [--device cuda|cpu] [--small] [--limit SECONDS] [--config FILE]

BUILD is a build folder (build/release). Writes OUT/<part>.json, and beside it everything that the programs
printed, OUT/<part>.log; tests/bench/device_report.py makes a document of them. A program that fails, or for which
no time is left, stands there with the reason, and the exit code is 1. launch/gpu-check.sh starts this.
"""
import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

# name: options of `amur_bench_training step`. The first ones are what all others are held against.
BERT_BASE = "--model bert-base --pairs 512 --length 128"
STEPS = {
    "minilm, 128 tokens": "--model minilm --pairs 2048 --length 128 --steps 15",
    "bert-base, 128 tokens": BERT_BASE + " --steps 11",
    "bert-large, 128 tokens": "--model bert-large --pairs 192 --length 128 --steps 11",
}
# With nothing kept between the passes: activations would hide what the weights take.
NOTHING_KEPT = " --set train.activation_budget=0"
STATES = {
    "bert-base, 128 tokens, nothing kept": BERT_BASE + NOTHING_KEPT,
    "bert-base, 128 tokens, nothing kept, weights in bf16": BERT_BASE + NOTHING_KEPT + " --set optimizer.state=bf16_weights",
    "bert-base, 128 tokens, nothing kept, state in bf16": BERT_BASE + NOTHING_KEPT + " --set optimizer.state=bf16",
}
# One thing is another one than in the first steps, so that what it brings can be read off.
MORE_STEPS = {
    "bert-base, 128 tokens, our own attention": BERT_BASE + " --set runtime.attention=own",
    "bert-base, 128 tokens, products by the library's first": BERT_BASE + " --set runtime.tune=false",
    "bert-base, mixed lengths": "--model bert-base --pairs 1024 --length 60 --longest 256",
    "bert-base, 512 tokens": "--model bert-base --pairs 128 --length 512",
    "bert-base, 128 tokens, dropout 0.1": BERT_BASE + " --set model.dropout=0.1",
}
LAST_STEPS = {
    "minilm, 128 tokens, chunks of 32k": "--model minilm --pairs 2048 --length 128 --set train.chunk_tokens=32768",
    "bert-base, 128 tokens, chunks of 32k": BERT_BASE + " --set train.chunk_tokens=32768",
    "bert-large, 128 tokens, chunks of 8k": "--model bert-large --pairs 192 --length 128 --set train.chunk_tokens=8192",
    "bert-base, 128 tokens, adamw": BERT_BASE + " --set optimizer.kind=adamw",
    "bert-base, 128 tokens, lion": BERT_BASE + " --set optimizer.kind=lion",
    "minilm, 128 tokens, fp32": "--model minilm --pairs 256 --length 128 --precision fp32",
}
IN_BF16 = " --set loss.precision=bf16"
LOSS = {"65,536 x 768, bf16": "--rows 65536 --width 768" + IN_BF16, "65,536 x 768, fp32": "--rows 65536 --width 768"}
MORE_LOSS = {"32,768 x 384, bf16": "--rows 32768 --width 384" + IN_BF16, "32,768 x 384, fp32": "--rows 32768 --width 384"}
# Filters of `amur_bench_kernels`, one start each: one that hangs takes no more than its own with it.
UPDATES = ("^optimizer_update/0", "^optimizer_update/[12]")
KERNELS = ("^(norm|gelu|dropout|column_sums|embedding|attention)/",
           "^attention_by_length/./0/(16|32|64|128|256|512)/", "^attention_by_length/./1/(16|32|64|128|256|512)/",
           "^attention_by_cudnn/./0/", "^attention_by_cudnn/./1/")
LAST_KERNELS = ("^attention_by_length/./0/(2048|8192)/", "^attention_by_length/./1/(2048|8192)/", "^linear/")
# Small: the same commands, to show on a CPU that they work.
SMALL_STEPS = {"tiny, 16 tokens": "--model tiny --pairs 8 --length 16 --steps 2",
               "tiny, mixed lengths, nothing kept": "--model tiny --pairs 8 --length 12 --longest 40 --steps 2 "
                                                    "--precision fp32" + NOTHING_KEPT}
SMALL_LOSS = {"64 x 32, bf16": "--rows 64 --width 32" + IN_BF16, "64 x 32, fp32": "--rows 64 --width 32"}
SMALL_UPDATES, SMALL_KERNELS = ("^optimizer_update/0",), ("^norm",)

# Of a bundle, for the programs alone (launch/gpu-tests.sh).
LIBRARIES = {"LD_LIBRARY_PATH": os.environ["AMUR_LIBRARY_PATH"]} if "AMUR_LIBRARY_PATH" in os.environ else {}

# Of one program, at most.
MOST_SECONDS = {"benchmarks": 60, "training": 300}
PROFILED_STEPS = 20  # many, since the weights' way to the GPU before the first one is spread over them

# How weights and momentum are held: options of `amur train`.
MODES = {state: [f"optimizer.state={state}"] for state in ("fp32", "bf16_weights", "bf16")}


class Bench:
    """Runs programs one after the other while there is time, and keeps what they say."""

    def __init__(self, options):
        self.options = options
        self.end = time.monotonic() + options.limit
        self.log = open(os.path.join(options.out, options.part + ".log"), "w", encoding="utf-8")
        self.failed = []
        self.report = {"part": options.part, "device": options.device, "small": options.small, "failed": self.failed}
        self.choices = ""  # a file: what one program has chosen by measuring is taken by the next

    def save(self):
        """What there is so far: whoever ends this early has it."""
        if os.path.exists(self.choices):
            with open(self.choices, encoding="utf-8") as file:
                self.report["choices"] = json.load(file)
        path = os.path.join(self.options.out, self.options.part + ".json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.report, file, indent=1)
        os.replace(path + ".new", path)

    def note(self, text):
        print(text, flush=True)
        print(text, file=self.log, flush=True)

    def run(self, name, command, environment=None):
        """What the program printed, also where it did not come to its end, and None or why not."""
        left = self.end - time.monotonic()
        begin = time.monotonic()
        self.note(f"== {name}: {' '.join(command)}")
        output, problem = "", None
        if left < 1:
            problem = f"not run: the {self.options.limit} s of this part were over"
        else:
            try:
                # One program that hangs takes no more than its share.
                done = subprocess.run(command, capture_output=True, text=True, check=False,
                                      timeout=min(left, MOST_SECONDS[self.options.part]),
                                      env=os.environ | LIBRARIES | (environment or {}))
                output, messages = done.stdout, done.stderr
                if done.returncode:
                    problem = f"exit code {done.returncode}: {(messages.strip().splitlines() or [''])[-1]}"
            except subprocess.TimeoutExpired as error:
                output, messages = ((text or b"").decode(errors="replace") for text in (error.stdout, error.stderr))
                problem = f"stopped after {time.monotonic() - begin:.0f} s"
            except OSError as error:
                problem = messages = str(error)
            self.log.write(messages + output)
        if problem:
            self.failed.append(name)
            self.note(f"{name}: {problem}")
        self.note(f"   {time.monotonic() - begin:.1f} s")
        return output, problem

    def run_json(self, name, command, environment=None):
        """The object that it printed, or {"error": why not}."""
        output, problem = self.run(name, command, environment)
        if problem:
            return {"error": problem}
        try:
            return json.loads(output[output.index("{"):])
        except ValueError:
            self.failed.append(name)
            return {"error": f"it printed no JSON but '{output[:200]}'"}

    def program(self, *names):
        return os.path.join(self.options.build, *names)


def step_command(bench, arguments):
    return [bench.program("tests", "bench", "amur_bench_training"), "step", "--device", bench.options.device,
            *arguments.split(), "--choices", bench.choices]


def steps(bench, wanted, found):
    for name, arguments in wanted.items():
        found[name] = bench.run_json(f"step: {name}", step_command(bench, arguments))
        step = found[name]
        if "error" not in step:
            bench.note(f"   {name}: {step['fraction']:.3f} of the product's {step['floors']['flops_per_second'] * 1e-12:.1f} "
                       f"TFLOP/s, {step['tokens_per_second']:,.0f} tokens/s, {1e3 * step['seconds']:.2f} ms, "
                       f"peak {step['peak_bytes'] * 1e-9:.2f} GB, attention: {step['attention']}")
        bench.save()


def loss_stage(bench, wanted, found):
    for name, arguments in wanted.items():
        found[name] = bench.run_json(f"loss stage: {name}",
                                     [bench.program("tests", "bench", "amur_bench_training"), "loss", "--device",
                                      bench.options.device, *arguments.split()])
        if "error" not in found[name]:
            bench.note(f"   {name}: {1e3 * found[name]['seconds']:.2f} ms, {found[name]['fraction']:.3f} of the product")
        bench.save()


def kernels(bench, filters, found):
    """Context and benchmarks of all filters together. Of a program that did not come to its end what it had measured,
    which it prints one by one."""
    for wanted in filters:
        command = [bench.program("tests", "bench", "amur_bench_kernels"), "--device", bench.options.device,
                   "--benchmark_format=json", f"--benchmark_min_time={0.005 if bench.options.small else 0.1}",
                   f"--benchmark_filter={wanted}"]
        output, problem = bench.run(f"kernels: {wanted}", command)
        if problem:
            found.setdefault("problems", {})[wanted] = problem
            output = output[:output.rfind("}") + 1] + "]}"  # closed behind the last figure
        try:
            part = json.loads(output[output.index("{"):])
        except ValueError:  # not even one
            if not problem:
                bench.failed.append(f"kernels: {wanted}")
            if "benchmarks" not in found:
                found["error"] = problem or f"no JSON was printed for {wanted}"
        else:
            found.pop("error", None)
            found.setdefault("context", part["context"])
            found.setdefault("benchmarks", []).extend(part["benchmarks"])
        bench.save()


def profile_problem(bench, library):
    """Why kernels cannot be timed one by one here; None where they can."""
    if bench.options.device == "cpu":
        return "a CPU has no kernels to list: the phases say where the time goes"
    if not os.path.exists(library):
        return f"{library} was not built: it needs CUPTI's header"
    loaded = subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", library],
                            capture_output=True, text=True, check=False, env=os.environ | LIBRARIES)
    return f"it cannot be loaded: {loaded.stderr.strip().splitlines()[-1]}" if loaded.returncode else None


def profiles(bench, found):
    """Seconds of every kernel of a step, from a run of its own, which chooses nothing anew."""
    library = bench.program("tests", "bench", "libamur_kernel_times.so")
    problem = profile_problem(bench, library)
    if problem:
        bench.note(f"== no profile by kernels: {problem}")
        found["error"] = problem
        return
    for name, arguments in STEPS.items():
        arguments = f"{arguments.split(' --steps ')[0]} --steps {PROFILED_STEPS} --floors no"
        with tempfile.TemporaryDirectory(prefix="amur_profile_") as folder:
            times = os.path.join(folder, "times.json")
            step = bench.run_json(f"profile: {name}", step_command(bench, arguments),
                                  {"CUDA_INJECTION64_PATH": library, "AMUR_KERNEL_TIMES": times})
            if "error" not in step and not os.path.exists(times):
                step = {"error": "no times were written: CUPTI does not work with this driver"}
            if "error" in step:
                found[name] = step
            else:
                with open(times, encoding="utf-8") as file:
                    measured = json.load(file)
                count = step["steps"] + step["warm_up_steps"]  # all of them ran the same kernels
                found[name] = {"step_seconds": step["seconds"], "steps": count, "dropped": measured["dropped"],
                               "kernels": [[kernel, calls / count, seconds / count]
                                           for kernel, calls, seconds in measured["names"]]}
        bench.save()


def benchmarks(bench):
    """What is asked for most comes first, should the time not suffice."""
    small = bench.options.small
    found = {name: bench.report.setdefault(name, {}) for name in ("steps", "loss", "profiles", "kernels")}
    # What was not come to is an error too, also where the whole of it is killed.
    found["profiles"]["error"] = found["kernels"]["error"] = "not run"
    steps(bench, SMALL_STEPS if small else STEPS, found["steps"])
    loss_stage(bench, SMALL_LOSS if small else LOSS, found["loss"])
    kernels(bench, SMALL_UPDATES if small else UPDATES, found["kernels"])
    steps(bench, {} if small else STATES, found["steps"])
    del found["profiles"]["error"]
    profiles(bench, found["profiles"])
    steps(bench, {} if small else MORE_STEPS, found["steps"])
    kernels(bench, SMALL_KERNELS if small else KERNELS, found["kernels"])
    loss_stage(bench, {} if small else MORE_LOSS, found["loss"])
    steps(bench, {} if small else LAST_STEPS, found["steps"])
    kernels(bench, () if small else LAST_KERNELS, found["kernels"])


def quick_start(bench):
    """Recall of the quick start trained on the device, evaluated from its checkpoint."""
    options, found = bench.options, bench.report.setdefault("training", {})
    amur = bench.program("src", "app", "amur")
    with open(options.config, encoding="utf-8") as file:
        text = file.read()
    dictionary = os.path.join(ROOT, "data", "trans", "de-en")  # of a bundle; else where Debian puts it
    if os.path.exists(dictionary):
        text = text.replace("- format: trans-de-en", f"- format: trans-de-en\n      path: {dictionary}")
    for name, settings in MODES.items():
        with tempfile.TemporaryDirectory(prefix="amur_quick_start_") as folder:
            config, run = os.path.join(folder, "quick_start.yaml"), os.path.join(folder, "run")
            with open(config, "w", encoding="utf-8") as file:
                file.write(text)
            if options.small:
                settings = [*settings, "train.steps=2", "train.batch_size=32"]
            changes = [word for value in settings for word in ("--set", value)]
            begin = time.monotonic()
            _, problem = bench.run(f"train: {name}", [amur, "train", config, "--run-dir", run, "--device",
                                                      options.device, *changes])
            if problem:
                found[name] = {"error": problem}
                bench.save()
                continue
            seconds = time.monotonic() - begin
            scores = bench.run_json(f"evaluate: {name}", [amur, "eval", run, "--json"])
            with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
                metrics = [json.loads(line) for line in lines]
            with open(os.path.join(run, "log.txt"), encoding="utf-8") as lines:
                state = [line for line in lines if "training state of a rank" in line]
            found[name] = {"settings": settings, "seconds": seconds, "steps": len(metrics),
                           "step_seconds": sorted(line["seconds"] for line in metrics)[len(metrics) // 2],
                           "peak_gpu_bytes": max(line["peak_gpu_bytes"] for line in metrics),
                           "state": state[0].strip() if state else "", "scores": scores}
            bench.save()


def machine():
    """What the figures are of."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/loadavg", encoding="utf-8") as file:
        load = " ".join(file.read().split()[:3])
    found = {"date": str(datetime.date.today()), "processor": (names or ["unknown"])[0], "cores": os.cpu_count(),
             "system": platform.platform(), "load_average_before": load}
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
        found["nvidia_smi"] = done.stdout.strip() if done.returncode == 0 else "nvidia-smi failed"
    except OSError:
        found["nvidia_smi"] = "there is no nvidia-smi here"
    return found


def main():
    options = argparse.ArgumentParser()
    options.add_argument("part", choices=("benchmarks", "training"))
    options.add_argument("build")
    options.add_argument("out")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--small", action="store_true", help="seconds instead of minutes: shows that it works")
    options.add_argument("--limit", type=float, default=540, help="seconds; what has not begun then is left out")
    options.add_argument("--config", default=os.path.join(ROOT, "configs", "dictionary.yaml"))
    options = options.parse_args()
    os.makedirs(options.out, exist_ok=True)
    bench = Bench(options)
    bench.report["machine"] = machine()
    doctor = bench.report["doctor"] = bench.run_json("doctor", [bench.program("src", "app", "amur"), "doctor", "--json"])
    if options.device == "cuda" and not doctor.get("gpu", {}).get("usable"):
        gpu = doctor.get("gpu", doctor)
        raise SystemExit(f"no GPU can be used here: {gpu.get('problem', gpu)}; {gpu.get('remedy', '')}")
    with tempfile.TemporaryDirectory(prefix="amur_benchmarks_") as folder:
        bench.choices = os.path.join(folder, "choices.json")
        if options.part == "benchmarks":
            benchmarks(bench)
        else:
            quick_start(bench)
        bench.save()
    if bench.failed:
        bench.note(f"not measured: {', '.join(bench.failed)}")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
