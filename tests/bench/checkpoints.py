"""Training time that checkpoints cost, written while training waits and beside it.

checkpoints.py PROGRAM [MEGABYTES ...]: writes docs/benchmarks/checkpoints.md. A position table much
longer than any text makes checkpoints as large as wanted and steps cheap.
"""
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))
WIDTH = 128
CONFIG = """\
model: {layers: 2, hidden: 128, heads: 2, ffn: 512, position: learned}
data: {vocab_size: 300, eval_limit: 10, sources: [{format: tsv, path: pairs.tsv, eval_path: eval.tsv}]}
train: {batch_size: 64, seed: 3}
eval: {every_steps: 0}
checkpoint: {every_minutes: 0, keep: 1}
parallel: {threads: 1}
"""


def train(program, folder, ranks, steps, megabytes, every, settings):
    """The lines of metrics.jsonl and the messages."""
    # Weights and momentum, 4 bytes each.
    rows = int(megabytes * 1e6 / (8 * WIDTH))
    run = tempfile.mkdtemp(dir=folder)
    command = ["mpirun", "-n", str(ranks), program, "train", "c.yaml", "--run-dir", run]
    for key, value in {"model.max_length": rows, "train.steps": steps,
                       "checkpoint.every_steps": every, **settings}.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=True,
                          timeout=900)
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        metrics = [json.loads(line) for line in lines]
    subprocess.run(["rm", "-r", run], check=True)
    return metrics, done.stderr


def measure(program, folder, ranks, megabytes, settings):
    """Seconds to write a checkpoint, that training stood still for it, lost by it; and of a step.
    Steps are compared with those of a run without checkpoints that takes place right before."""
    probe, _ = train(program, folder, ranks, 6, megabytes, 0, settings)
    step = statistics.median(line["seconds"] for line in probe[2:])
    # A write beside the training must end before the next one begins.
    every = max(4, int((2 + megabytes / 60) / step))
    count = 3
    plain, _ = train(program, folder, ranks, every * count, megabytes, 0, settings)
    lines, messages = train(program, folder, ranks, every * count + 1, megabytes, every, settings)
    write = statistics.median(float(s) for s in re.findall(r"checkpoint \S+ in ([\d.]+) s", messages))
    # The interval behind a checkpoint, against the median step without any.
    step = statistics.median(line["seconds"] for line in plain[2:])
    lost = [sum(line["seconds_checkpoint"] + line["seconds"] - step
                for line in lines[first:first + every]) for first in range(every, every * count, every)]
    still = statistics.median(line["seconds_checkpoint"] for line in lines
                              if line["seconds_checkpoint"] > 0)
    return write, still, statistics.median(lost), step


def main():
    program = os.path.abspath(sys.argv[1])
    os.environ |= {"AMUR_PROGRAM": program, "AMUR_MPIEXEC": "mpirun", "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_hwloc_base_binding_policy": "none"}
    import support

    sizes = [int(size) for size in sys.argv[2:]] or [100, 1000]
    with tempfile.TemporaryDirectory(prefix="amur_checkpoints_") as folder:
        support.write_tsv(os.path.join(folder, "pairs.tsv"), 4000)
        support.write_tsv(os.path.join(folder, "eval.tsv"), 50, seed=2)
        with open(os.path.join(folder, "c.yaml"), "w", encoding="utf-8") as out:
            out.write(CONFIG)
        rows = []
        cores = os.cpu_count()
        for megabytes in sizes:
            for ranks in (1, cores):
                for beside in ("off", "on"):
                    write, still, lost, step = measure(program, folder, ranks, megabytes,
                                                       {"checkpoint.async": beside})
                    rows.append(f"| {megabytes} | {ranks} of {cores} cores | {beside} | {step:.3f} | "
                                f"{write:.2f} | {still:.3f} | {lost:.2f} | {100 * lost / write:.0f} % |")
                    print(rows[-1], flush=True)
        files = []
        for name, settings in (("contiguous", {}), ("deflate 1", {"checkpoint.compression": 1}),
                               ("deflate 1, chunks of 256 KB", {"checkpoint.compression": 1,
                                                                "checkpoint.chunk_size": "256KB"}),
                               ("cb_nodes=1", {"checkpoint.mpi_io_hints": "cb_nodes=1"})):
            _, messages = train(program, folder, 2, 3, sizes[0], 1,
                                {"checkpoint.async": "off", **settings})
            seconds = [float(s) for s in re.findall(r"checkpoint \S+ in ([\d.]+) s", messages)]
            files.append(f"| {name} | {statistics.median(seconds):.2f} |")
            print(files[-1], flush=True)
    with open("/proc/loadavg", encoding="utf-8") as load:
        load = " ".join(load.read().split()[:3])
    with open(os.path.join(HERE, "..", "..", "docs", "benchmarks", "checkpoints.md"), "w",
              encoding="utf-8") as out:
        out.write(f"""# Checkpoints

Written by `tests/bench/checkpoints.py build/release/src/app/amur {' '.join(map(str, sizes))}`, {datetime.date.today()}, load average after: {load}.

`beside` is `checkpoint.async`. *Stood still*: the training did nothing else; for a checkpoint beside the training, the
copy and the wait for the one before. *Lost*: that, and what the steps of one interval took longer than as many median steps of a
run without checkpoints just before; on a busy machine this difference is noisy.

| MB | ranks | beside | step, s | write, s | stood still, s | lost, s | lost / write |
| --- | --- | --- | --- | --- | --- | --- | --- |
""" + "\n".join(rows) + f"""

## Layout of the file

{sizes[0]} MB by 2 ranks, seconds a write (checks included).

| layout | s |
| --- | --- |
""" + "\n".join(files) + "\n")


if __name__ == "__main__":
    main()
