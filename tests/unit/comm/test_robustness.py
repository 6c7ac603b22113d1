#!/usr/bin/env python3
"""Starts misbehave under mpirun and checks how the job ends.

test_robustness.py MPIEXEC PROGRAM CASE [FACTOR]    (FACTOR: for the time allowed, under sanitizers)
"""
import os
import re
import signal
import subprocess
import sys
import time

SITE = "tests/unit/comm/misbehave.cpp:"

# case: ranks, liveness, progress, seconds at most, exit code, texts that must appear
# (0 ranks: without mpirun; exit code None: any but 0)
CASES = {
    "throw": (4, 30, 30, 15, 4, ["rank 3/4 (dp 3, tp 0)", "pass 1: disk full", "world.barrier #10", SITE]),
    "throw-all": (4, 30, 30, 15, 4, ["error: pass 1: disk full everywhere"]),
    "usage-all": (4, 30, 30, 15, 2, ["error: no such file 'x.yaml'"]),
    "usage-one": (4, 30, 30, 15, 2, ["rank 3/4", "no such file 'x.yaml'"]),
    "stop": (4, 2, 60, 20, 3, ["rank 3/4", "has not been heard of", "phase 'pass 1'",
                               "after world.barrier #10", SITE]),
    "stop-first": (4, 2, 60, 20, 3, ["rank 0/4", "has not been heard of", "phase 'pass 1'",
                                     "after world.barrier #10", SITE]),
    "mismatch": (4, 30, 30, 15, 3, ["the ranks entered different collectives", "rank 3/4",
                                    "world.barrier #11", "world.sum #11", "pass 1", SITE]),
    "other-group": (4, 10, 2, 20, 3, ["no rank has moved", "rank 3/4",
                                      "waits in another collective than the others",
                                      "waiting in node.barrier #1", SITE]),
    "loop": (4, 10, 2, 20, 3, ["no rank has moved", "rank 3/4",
                               "is not in a collective while the others wait in one",
                               "phase 'pass 1'", "waiting in world.sum #11", SITE]),
    # A sum on the side stream that one rank never starts: named as what the others wait for.
    "side": (4, 10, 2, 20, 3, ["no rank has moved", "rank 3/4",
                               "is not in a collective while the others wait in one",
                               "waiting in world.all_reduce sum #12, f32 x 1000", SITE]),
    # The same with tensors on GPUs, over what passes for NCCL: it has started, and is not done.
    "nccl-stall": (4, 10, 2, 20, 3, ["no rank has moved", "rank 3/4",
                                     "is not in a collective while the others wait in one",
                                     "waiting in world.all_reduce sum #12, f32 x 1000", SITE]),
    # There a rank that waits is made to throw: it aborts what it waits for, and says what that was.
    "nccl-funneled": (3, 10, 2, 25, 3, ["no progress for", "world.synchronize at " + SITE,
                                        "waiting for world.all_reduce sum #12, f32 x 1000, at "
                                        + SITE]),
    "nccl-kill": (4, 10, 10, 15, None, []),
    # Without MPI_THREAD_MULTIPLE every rank watches itself.
    "funneled": (3, 10, 2, 25, 3, ["does not give MPI_THREAD_MULTIPLE", "rank 2/3",
                                   "no progress for", "after world.barrier #10",
                                   "waiting in world.sum #11", SITE]),
    "leave": (4, 10, 2, 20, 3, ["no rank has moved", "rank 3/4", "has finished its work", SITE]),
    "kill": (4, 10, 10, 15, None, []),
    "honest": (3, 2, 3, 60, 0, []),
    "interrupted": (2, 30, 30, 15, 75, []),
    # One process needs no launcher, and is watched too.
    "alone-loop": (0, 10, 1, 20, 3, ["no rank has moved", "phase 'pass 1'", SITE]),
    "alone-throw": (0, 10, 10, 15, 4, ["error: pass 1: disk full"]),
    # srun without PMIx would make single runs of the tasks: task 0 says so, the others are silent.
    "srun-task-0": (0, 10, 10, 15, 2, ["srun started 4 tasks", "srun --mpi=pmix"]),
    "srun-task-3": (0, 10, 10, 15, 2, []),
}
ONCE = {"usage-all": "no such file", "throw-all": "disk full everywhere"}


def run(mpiexec, program, kind, ranks, liveness, progress, limit, extra=None):
    """Exit code (None: did not end in time), output, seconds."""
    command = [program, kind, str(liveness), str(progress)]
    if ranks:
        command = [mpiexec, "-n", str(ranks)] + command
    start = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={**os.environ, **(extra or {})})
    try:
        output, _ = job.communicate(timeout=limit)
        code = job.returncode
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
        code = None
    seconds = time.monotonic() - start
    if code is None:
        for pid in re.findall(r"^pid (\d+)$", output, re.M):
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            job.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            job.kill()
            job.communicate()
    return code, output, seconds


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def suspend(mpiexec, program):
    """A job that stands still as a whole for longer than the limits goes on afterwards."""
    job = subprocess.Popen([mpiexec, "-n", "3", program, "work", "1", "2"], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    lines = [job.stdout.readline() for _ in range(3)]
    pids = [int(line.split()[1]) for line in lines]
    time.sleep(0.5)
    for sign, pause in ((signal.SIGSTOP, 4), (signal.SIGCONT, 0)):
        for pid in pids:
            os.kill(pid, sign)
        time.sleep(pause)
    output, _ = job.communicate(timeout=60)
    if job.returncode != 0:
        sys.exit(f"exit code {job.returncode}\n{output}")


def main():
    mpiexec, program, case = sys.argv[1:4]
    if case.endswith("-unwatched"):
        # The negative control: without the watchdog a stopped rank holds the others for ever.
        kind = "stop" if case == "stop-unwatched" else "nccl-stall"
        code, output, _ = run(mpiexec, program, kind, 2, 0, 0, 6)
        if code is not None:
            sys.exit(f"the job ended by itself with {code}\n{output}")
        return
    if case == "suspend":
        return suspend(mpiexec, program)
    ranks, liveness, progress, limit, want, texts = CASES[case]
    limit *= int(sys.argv[4]) if len(sys.argv) > 4 else 1
    extra = {}
    kind = case
    if case.startswith("alone-"):
        kind = case[len("alone-"):]
    if case.startswith("srun-task-"):
        extra = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
                 "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_PROCID": case[-1]}
    code, output, seconds = run(mpiexec, program, kind, ranks, liveness, progress, limit, extra)
    problems = [f"'{text}' is missing" for text in texts if text not in output]
    if code is None:
        problems.append(f"the job was still there after {limit} s")
    elif want is None and code == 0 or want is not None and code != want:
        problems.append(f"exit code {code}, wanted {want}")
    if case in ONCE and output.count(ONCE[case]) != 1:
        problems.append(f"'{ONCE[case]}' stands {output.count(ONCE[case])} times")
    if case == "srun-task-3" and output:
        problems.append("a task other than 0 spoke")
    # Nothing may be left behind; what was just killed may take a moment to go.
    pids = [int(pid) for pid in re.findall(r"^pid (\d+)$", output, re.M)]
    patience = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < patience:
        time.sleep(0.05)
    for pid in filter(alive, pids):
        problems.append(f"process {pid} is left behind")
        os.kill(pid, signal.SIGKILL)
    print(f"{case}: exit code {code} after {seconds:.1f} s")
    if problems:
        sys.exit("\n".join(problems) + "\n--- output ---\n" + output)


if __name__ == "__main__":
    main()
