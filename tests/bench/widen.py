"""Memory and time of `amur widen` on a large checkpoint, against copying its bytes.

widen.py PROGRAM [FOLDER [GIGABYTES]]: writes docs/benchmarks/widen.md. A small model is trained for
a step and widened to a checkpoint of 4 GB (weights and momentum), which is then widened again. The
folder needs room for three times as much.
"""
import datetime
import os
import subprocess
import sys
import tempfile
import time

import h5py

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))
CONFIG = """\
model: {layers: 1, hidden: 256, heads: 4, ffn: 1024, head_size: 64, projection: 64}
data: {vocab_size: 300, eval_limit: 10, sources: [{format: tsv, path: pairs.tsv, eval_path: eval.tsv}]}
train: {batch_size: 16, steps: 1, seed: 3}
parallel: {threads: 1}
"""
LAYER = 4 * 2048 * 2048 + 2 * 2048 * 4096  # parameters of one layer of the large model
LARGE = ("--hidden", 2048, "--heads", 32, "--ffn", 4096)
LARGER = ("--hidden", 2560, "--old-statistics", "--heads", 40, "--ffn", 5120)


def measure(command, folder):
    """Seconds, peak resident megabytes of a process, and what it said."""
    begin = time.monotonic()
    with open(os.path.join(folder, "messages"), "w+", encoding="utf-8") as out:
        job = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=out, stderr=out)
        _, status, usage = os.wait4(job.pid, 0)
        seconds = time.monotonic() - begin
        out.seek(0)
        messages = out.read()
    if status != 0:
        raise SystemExit(f"{command} failed:\n{messages}")
    return seconds, usage.ru_maxrss * 1024e-6, messages


def copy(source, folder):
    """Seconds of cp, with the bytes brought to the disk as a checkpoint's are."""
    target = os.path.join(folder, "copy.h5")
    begin = time.monotonic()
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.monotonic() - begin
    os.unlink(target)
    return seconds


def tensors(path):
    """Bytes of all tensors, and of the largest."""
    sizes = []
    with h5py.File(path, "r") as file:
        for group in ("/model", "/optimizer"):
            file[group].visititems(lambda _, item: sizes.append(item.size * item.dtype.itemsize)
                                   if isinstance(item, h5py.Dataset) else None)
    return sum(sizes), max(sizes)


def main():
    program = os.path.abspath(sys.argv[1])
    place = sys.argv[2] if len(sys.argv) > 2 else None
    gigabytes = float(sys.argv[3]) if len(sys.argv) > 3 else 4
    os.environ |= {"AMUR_PROGRAM": program, "AMUR_MPIEXEC": "mpirun", "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_hwloc_base_binding_policy": "none"}
    import support

    layers = max(1, round(gigabytes * 1e9 / 8 / LAYER))
    rows = []
    with tempfile.TemporaryDirectory(prefix="amur_widen_", dir=place) as folder:
        support.write_tsv(os.path.join(folder, "pairs.tsv"), 200)
        support.write_tsv(os.path.join(folder, "eval.tsv"), 20, seed=2)
        with open(os.path.join(folder, "c.yaml"), "w", encoding="utf-8") as out:
            out.write(CONFIG)
        measure([program, "train", "c.yaml", "--run-dir", "small"], folder)
        large = os.path.join(folder, "large.h5")
        measure([program, "widen", "small", large, *LARGE, "--layers", layers, "--no-proof"], folder)
        total, largest = tensors(large)
        limit = 512 + 2e-6 * largest
        for ranks, proof in ((1, False), (2, False), (1, True)):
            larger = os.path.join(folder, "larger.h5")
            copied = copy(large, folder)
            command = [program, "widen", large, larger, *LARGER] + ([] if proof else ["--no-proof"])
            if ranks > 1:
                command = ["mpirun", "-n", ranks, *command]
            seconds, peak, messages = measure(command, folder)
            told = [line for line in messages.splitlines() if "the proof takes" in line]
            print(messages, flush=True)
            written, _ = tensors(larger)
            os.unlink(larger)
            rows.append(f"| {ranks} | {'yes' if proof else 'no'} | {written * 1e-9:.2f} | {seconds:.1f} | "
                        f"{copied:.1f} | {seconds / written / (copied / total):.1f} | {peak:.0f} |")
            print(rows[-1], flush=True)
            if not proof and peak > limit:
                raise SystemExit(f"{peak:.0f} MB are more than {limit:.0f} MB")
    with open("/proc/loadavg", encoding="utf-8") as load:
        load = " ".join(load.read().split()[:3])
    arguments = " ".join(["build/release/src/app/amur", *(["FOLDER"] if place else []),
                          *(sys.argv[3:4] if len(sys.argv) > 3 else [])])
    with open(os.path.join(HERE, "..", "..", "docs", "benchmarks", "widen.md"), "w",
              encoding="utf-8") as out:
        out.write(f"""# Widening a large checkpoint

Written by `tests/bench/widen.py {arguments}`, {datetime.date.today()}, load average after: {load}, {os.cpu_count()} cores.

A checkpoint of {total * 1e-9:.2f} GB, weights and momentum: {layers} layers of width 2048, feed-forward 4096; its largest tensor has {largest * 1e-6:.1f} MB.
`amur widen {' '.join(map(str, LARGER))}`, with noise. *Copying* is `cp` and `sync` of the {total * 1e-9:.2f} GB just before; the ratio is that of the times for
a byte written. Widening reads everything twice and the new file once more, to verify it. Peak memory is that of the largest process, and must
stay below 512 MB and twice the largest tensor, {limit:.0f} MB, without the proof; the proof takes the weights of one model at a time, and most of its time goes
into the products of 128 texts with both models. Two ranks were slower here than one; why was not looked into (each block is a collective write).

| ranks | proof | GB written | widening, s | copying, s | ratio | peak MB of a process |
| --- | --- | --- | --- | --- | --- | --- |
""" + "\n".join(rows) + f"""

What the last one said before it began: `{told[0].split(']')[-1].strip() if told else ''}`.
""")


if __name__ == "__main__":
    main()
