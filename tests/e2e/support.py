"""What the end-to-end tests share: small data, running `amur` under mpirun, reading what it wrote.

AMUR_PROGRAM, AMUR_MPIEXEC and AMUR_TIME_FACTOR (of limits, under sanitizers) come from ctest, and
so does the environment that Open MPI needs in tests.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

PROGRAM = os.environ["AMUR_PROGRAM"]
MPIEXEC = os.environ["AMUR_MPIEXEC"]
TIME_FACTOR = float(os.environ.get("AMUR_TIME_FACTOR", "1"))

SYLLABLES = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu".split()
NUMBERS = ("step", "loss", "scale", "learning_rate", "embedding_gradient_norm", "momentum_change")


def pairs(count, seed=1, words=120, longest=7):
    """Pairs that can be learned: the document is the query in another language, words reversed."""
    draw = random.Random(seed)
    language = random.Random(0)
    ours = ["".join(language.choices(SYLLABLES, k=language.randint(1, 3))) for _ in range(words)]
    theirs = ["".join(language.choices(SYLLABLES, k=language.randint(1, 3))) + "r"
              for _ in range(words)]
    made = []
    for _ in range(count):
        text = [draw.randrange(words) for _ in range(draw.randint(1, longest))]
        made.append((" ".join(ours[w] for w in text), " ".join(theirs[w] for w in reversed(text))))
    return made


def write_tsv(path, count, seed=1):
    with open(path, "w", encoding="utf-8") as out:
        for query, document in pairs(count, seed):
            out.write(f"{query}\t{document}\n")
    return path


class Outcome:
    """How a job ended: exit code, both outputs, seconds."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def __str__(self):
        return (f"exit code {self.code} after {self.seconds:.1f} s\n--- output ---\n{self.out}"
                f"--- messages ---\n{self.err}")

    def json(self):
        return json.loads(self.out)


def command(args, ranks):
    job = [PROGRAM, *map(str, args)]
    return [MPIEXEC, "-n", str(ranks), *job] if ranks else job


def start(args, ranks=1, **options):
    """A job in its own process group, so that nothing of it can be left behind."""
    return subprocess.Popen(command(args, ranks), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, **options)


def finish(job, limit=60):
    """Waits for a job; one that outlives its limit has failed, and is removed."""
    begin = time.monotonic()
    try:
        out, err = job.communicate(timeout=limit * TIME_FACTOR)
    except subprocess.TimeoutExpired:
        out, err = remove(job)
        raise AssertionError(f"the job was still there after {limit} s\n{out}{err}") from None
    return Outcome(job.returncode, out, err, time.monotonic() - begin)


# Open MPI 4.1 says this, and mpirun or the daemon of a host then stays, where a rank is killed while
# they greet it in MPI_Init. So does any program under it (docs/running.md): no rank is left.
KILLED_IN_GREETING = "PMIX ERROR: UNREACHABLE"


def remove(job):
    """Ends what is left of a job; its outputs, unless they were read before."""
    if job.poll() is None:
        for pid in processes_of(job.pid):
            kill(pid)
    return ("", "") if job.stdout.closed else job.communicate()


def run(*args, ranks=1, limit=60, **options):
    begin = time.monotonic()
    feed = options.pop("feed", None)
    if feed is not None:
        options["stdin"] = feed
    outcome = finish(start(args, ranks, **options), limit)
    outcome.seconds = time.monotonic() - begin
    return outcome


def stat_of(pid):
    """State and parent of a process; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return fields[0], int(fields[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def kill(pid, sign=signal.SIGKILL):
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        pass


def processes_of(pid):
    """A process and all that come from it."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := stat_of(int(name))):
            children.setdefault(stat[1], []).append(int(name))
    found = [pid]
    for p in found:
        found += children.get(p, [])
    return found


def ranks_of(job):
    """The processes of amur in a job, by rank."""
    found = {}
    for pid in processes_of(job.pid):
        try:
            if os.readlink(f"/proc/{pid}/exe") != os.path.realpath(PROGRAM):
                continue
            with open(f"/proc/{pid}/environ", "rb") as environ:
                variables = dict(v.split(b"=", 1) for v in environ.read().split(b"\0") if b"=" in v)
            found[int(variables.get(b"OMPI_COMM_WORLD_RANK", b"0"))] = pid
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass
    return [found[rank] for rank in sorted(found)]


def wait_until(condition, limit=30, pause=0.01):
    end = time.monotonic() + limit * TIME_FACTOR
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit} s in vain")
        time.sleep(pause)


def metrics(run_dir):
    """The lines of metrics.jsonl; none before the first step."""
    try:
        with open(os.path.join(run_dir, "metrics.jsonl"), encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []


def columns(run_dir, names=NUMBERS):
    return [tuple(line[name] for name in names) for line in metrics(run_dir)]


def checkpoint(run_dir, step):
    return os.path.join(run_dir, "checkpoints", f"step-{step:08}.h5")


def checkpoints(run_dir):
    return sorted(name for name in os.listdir(os.path.join(run_dir, "checkpoints"))
                  if name.startswith("step-") and name.endswith(".h5"))


def temporary_files(folder):
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names
            if name.endswith(".tmp")]


def datasets(path, groups=("/model", "/optimizer", "/state")):
    """Every data set below the groups, and the attributes of /state, as NumPy values."""
    import h5py

    found = {}
    with h5py.File(path, "r") as file:
        for group in groups:
            file[group].visititems(
                lambda name, item, group=group: found.update({f"{group}/{name}": item[()]})
                if isinstance(item, h5py.Dataset) else None)
        if "/state" in groups:
            for name, value in file["/state"].attrs.items():
                found[f"/state:{name}"] = value
    return found


def settings(values):
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


SMALL = """\
model: {layers: 1, hidden: 32, heads: 2, ffn: 64, max_length: 32, dropout: 0.1, word_dropout: 0.05}
data:
  vocab_size: 300
  sources: [{format: tsv, path: pairs.tsv, eval_path: eval.tsv}]
optimizer: {kind: tiger, learning_rate: 0.004, warmup_steps: 10}
train: {batch_size: 64, chunk_tokens: 256, steps: 10, seed: 3}
checkpoint: {every_minutes: 0}
"""


class EndToEnd(unittest.TestCase):
    """A temporary folder with small data and the configuration small.yaml."""

    samples, held_out = 700, 200

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="amur_e2e_")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        write_tsv(self.path("pairs.tsv"), self.samples)
        write_tsv(self.path("eval.tsv"), self.held_out, seed=2)
        self.write("small.yaml", SMALL)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(text)
        return self.path(name)

    def run_in(self, *args, **options):
        return run(*args, cwd=self.folder, **options)

    def start_in(self, *args, **options):
        job = start(args, cwd=self.folder, **options)
        self.addCleanup(remove, job)
        return job

    def train_args(self, run_dir, values, *more, config="small.yaml"):
        return ["train", config, "--run-dir", run_dir, *settings(values), *more]

    def train(self, run_dir, values=None, *more, ranks=1, code=0, config="small.yaml", limit=60,
              **options):
        outcome = self.run_in(*self.train_args(run_dir, values or {}, *more, config=config),
                              ranks=ranks, limit=limit, **options)
        self.assertEqual(outcome.code, code, outcome)
        return outcome

    def refuses(self, outcome, code, *texts):
        """One clear message, once for all ranks, with the exit code of its kind, and no noise."""
        self.assertEqual(outcome.code, code, outcome)
        self.assertEqual(outcome.err.count("error: "), 1, outcome)
        for text in texts:
            self.assertIn(text, outcome.err)
        for noise in ("terminate called", "HDF5-DIAG", "Backtrace", "what():", "Segmentation",
                      "MPI_ABORT was invoked", "core dumped", "last collectives"):
            self.assertNotIn(noise, outcome.err)
        return outcome


def main():
    unittest.main(verbosity=2)
