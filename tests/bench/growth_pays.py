#!/usr/bin/env python3
"""What growth saves: train small, widen, go on, against a large model from random weights.

growth_pays.py run PROGRAM FOLDER [--jobs N] [--plan tiny] [--only TEXT ...]
    trains what FOLDER does not hold yet, N runs at a time, one thread each. Started again after an
    interruption it goes on where it was.
growth_pays.py report FOLDER OUT
    writes OUT/growth.md, growth.json and the plots from metrics.jsonl and evaluation.jsonl of the
    runs. Needs nothing but Python.

The vocabulary is taken from a checkpoint with h5py. Every run of a data set and a seed sees the
same samples in the same order.
"""
import argparse
import dataclasses
import glob
import json
import math
import os
import re
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


@dataclasses.dataclass(frozen=True)
class Data:
    source: str
    more: str = ""  # further keys of `data`
    max_length: int = 64
    word_dropout: float = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the experiment; all runs are made of these."""
    data: dict
    small: dict
    large: dict
    thin: dict       # as wide as the large one, with small layers
    vocabulary: int
    batch: int
    rate: float
    steps: int       # of the large model from random weights: T
    warmup: int
    every: int       # steps between evaluations
    held_out: int    # evaluation pairs during training
    main_data: tuple
    ablation_data: str
    seeds: tuple
    ablation_seeds: tuple


WORDNET = Data("{format: wordnet}", "lower_case: true", 96, 0.1)
DICTIONARY = Data("{format: trans-de-en, all_alternatives: true}", "", 64, 0.05)
FULL = Plan(data={"wordnet": WORDNET, "trans-de-en": DICTIONARY},
            small={"hidden": 64, "heads": 2, "ffn": 256},
            large={"hidden": 128, "heads": 4, "ffn": 512},
            thin={"hidden": 128, "heads": 1, "head_size": 32, "ffn": 64},
            vocabulary=8000, batch=512, rate=0.005, steps=600, warmup=50, every=50, held_out=3000,
            main_data=("wordnet", "trans-de-en"), ablation_data="wordnet", seeds=(1, 2, 3),
            ablation_seeds=(1,))
# For the test: two files of pairs in the folder.
TINY = dataclasses.replace(
    FULL, data={"pairs": Data("{format: tsv, path: pairs.tsv, eval_path: eval.tsv}")},
    small={"hidden": 16, "heads": 1, "ffn": 32}, large={"hidden": 32, "heads": 2, "ffn": 64},
    thin={},
    vocabulary=300, batch=32, steps=12, warmup=2, every=3, held_out=60, main_data=("pairs",),
    ablation_data="pairs", seeds=(1,), ablation_seeds=())
PLANS = {"full": FULL, "tiny": TINY}


# --- the runs ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    name: str            # of its folder; data/seed/what
    data: str
    seed: int
    size: dict
    steps: int           # at which it ends
    schedule: tuple      # (step, factor) points; empty: the cosine of T steps
    schedule_steps: int
    parent: str = ""     # the run it grew from,
    moment: int = 0      # after so many steps,
    widen: tuple = ()    # with these options of `amur widen`
    checkpoints: int = 0
    judged: bool = False  # on the whole test split at the end, too

    @property
    def label(self):
        return self.name.split("/")[2]


def cosine_points(begin, warmup, end, top):
    """Points of a cosine that falls from `top` at step `begin` to 0.05 at `end`, behind a warm-up
    from 0 if there is one."""
    points = {begin - 1: 0.0} if warmup else {}
    for i in range(9):
        share = i / 8
        factor = 0.05 + (top - 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        points[round(begin + warmup + share * (end - begin - warmup))] = round(factor, 4)
    return tuple(points.items())


def cosine_factor(plan, step, steps):
    """Factor of the rate at a step of the plan's cosine over so many steps."""
    share = (step - plan.warmup) / (steps - plan.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))


def runs_of(plan):
    """All runs, those first that others need, the main comparison before the ablations.

    The large model has T steps. The small one and what grows from it have a schedule of 4/3 T.
    """
    total, long = plan.steps, plan.steps * 4 // 3
    two_thirds = total * 2 // 3
    runs = {}

    def fresh(data, seed, label, size, steps, judged=False):
        run = Run(f"{data}/{seed}/{label}", data, seed, size, steps, (), steps,
                  checkpoints=total // 12, judged=judged)
        runs[run.name] = run

    def grown(data, seed, label, moment, steps=long, schedule=(), split=(), parent="small",
              schedule_steps=long, size=plan.large, judged=False):
        run = Run(f"{data}/{seed}/{label}", data, seed, size, steps, schedule, schedule_steps,
                  f"{data}/{seed}/{parent}", moment, split, checkpoints=total // 12, judged=judged)
        runs[run.name] = run

    for seed in plan.seeds:
        for data in plan.main_data:
            fresh(data, seed, "large", plan.large, total, judged=True)
            fresh(data, seed, "small", plan.small, long, judged=True)
            grown(data, seed, f"grown at {two_thirds}", two_thirds, judged=True)
            grown(data, seed, f"grown at {total}", total, judged=True)
    data, at = plan.ablation_data, f"grown at {two_thirds}"
    for seed in plan.ablation_seeds:
        for label, *split in (("noise 0 dB", "--noise-db", "0"), ("noise -6 dB", "--noise-db=-6"),
                              ("split uneven", "--split", "uneven"),
                              ("split even", "--split", "even")):
            grown(data, seed, f"{at}, {label}", two_thirds, split=tuple(split))
        odd = plan.large | {"hidden": plan.large["hidden"] - 1, "head_size": 32}
        grown(data, seed, f"{at}, new coordinates 0", two_thirds, size=odd,
              split=("--old-statistics",))
        factor, rewarm = cosine_factor(plan, two_thirds, long), max(1, total // 20)
        for label, end, warmup, top in (("warm-up to the full rate", long, rewarm, 1),
                                        ("decay sooner", long - total // 6, 0, factor)):
            grown(data, seed, f"{at}, {label}", two_thirds, end,
                  cosine_points(two_thirds, warmup, end, top))
        grown(data, seed, f"grown at {total // 3}", total // 3)
        fresh(data, seed, f"small, {total} steps", plan.small, total)
        grown(data, seed, f"grown at {total}, small one decayed first, warm-up to the full rate",
              total, long, cosine_points(total, rewarm, long, 1), parent=f"small, {total} steps")
        grown(data, seed, f"grown at {total // 3}, schedule of {total} steps", total // 3, total,
              parent=f"small, {total} steps", schedule_steps=total)
        equal = total * 7 // 12
        fresh(data, seed, f"large, {equal} steps", plan.large, equal)
        fresh(data, seed, "large width, one head, small feed-forward", plan.thin, total)
    return runs


def config_of(plan, run, vocabulary):
    data = plan.data[run.data]
    size = "".join(f"  {key}: {value}\n" for key, value in run.size.items())
    if run.schedule:
        points = ", ".join(f"{{step: {step}, factor: {factor}}}" for step, factor in run.schedule)
        schedule = f"schedule: piecewise, schedule_points: [{points}]"
    else:
        schedule = f"schedule: cosine, warmup_steps: {plan.warmup}"
    more = f"  {data.more}\n" if data.more else ""
    return f"""\
model:
  layers: 1
  max_length: {data.max_length}
  dropout: 0.1
  word_dropout: {data.word_dropout}
{size}data:
  vocab_size: {plan.vocabulary}
  tokenizer_model: "{vocabulary}"
  eval_split: val
  eval_limit: {plan.held_out}
{more}  sources: [{data.source}]
optimizer: {{kind: tiger, learning_rate: {plan.rate}, {schedule}}}
train:
  batch_size: {plan.batch}
  steps: {run.steps}
  schedule_steps: {run.schedule_steps}
  seed: {run.seed}
eval: {{every_steps: {plan.every}}}
checkpoint: {{every_minutes: 0, every_steps: {run.checkpoints}, keep: 100, keep_best: false}}
parallel: {{threads: 1}}
"""


class Workshop:
    """A folder of runs and the program that makes them."""

    def __init__(self, program, folder, plan):
        self.program, self.folder = os.path.abspath(program), os.path.abspath(folder)
        self.plan = plan
        os.makedirs(self.folder, exist_ok=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def run_dir(self, name):
        return self.path(re.sub(r"[, ]+", "-", name))

    def checkpoint(self, name, step):
        return os.path.join(self.run_dir(name), "checkpoints", f"step-{step:08}.h5")

    def amur(self, *args):
        """Standard output and processor seconds of one command."""
        read, write = os.pipe()
        with open(self.path("messages.txt"), "a", encoding="utf-8") as messages:
            job = subprocess.Popen([self.program, *map(str, args)], cwd=self.folder, stdout=write,
                                   stderr=messages)
        os.close(write)
        with open(read, encoding="utf-8") as pipe:
            output = pipe.read()
        _, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        if job.returncode != 0:
            raise RuntimeError(f"amur {' '.join(map(str, args))}: exit code {job.returncode}; see "
                               f"{self.path('messages.txt')}")
        return output, usage.ru_utime + usage.ru_stime

    def make_vocabulary(self, data):
        path = self.path(f"{data}.model")
        if not os.path.exists(path):
            import h5py

            run = Run(f"{data}/0/vocabulary", data, 0, self.plan.small, 1, (), 1)
            self.write_config(run, "")
            folder = self.run_dir(run.name)
            self.amur("train", folder + ".yaml", "--run-dir", folder)
            with h5py.File(self.checkpoint(run.name, 1)) as file:
                content = file["/tokenizer/sentencepiece"][()].tobytes()
            with open(path + ".tmp", "wb") as out:
                out.write(content)
            os.replace(path + ".tmp", path)
        return path

    def write_config(self, run, vocabulary):
        path, text = self.run_dir(run.name) + ".yaml", config_of(self.plan, run, vocabulary)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                if file.read() != text:
                    raise RuntimeError(f"{path}: begun with another configuration; remove the run")
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)

    def done(self, run):
        return os.path.exists(self.run_dir(run.name) + ".json")

    def make(self, run):
        if self.done(run):
            return
        folder = self.run_dir(run.name)
        self.write_config(run, self.path(f"{run.data}.model"))
        facts = {**dataclasses.asdict(run), "label": run.label, "widen_cpu_seconds": 0}
        resume = "auto"
        if run.parent:
            resume = folder + "-from.h5"
            output, seconds = self.amur(
                "widen", self.checkpoint(run.parent, run.moment), resume, "--hidden",
                run.size["hidden"], "--heads", run.size["heads"], "--ffn", run.size["ffn"],
                "--no-projection", "--seed", run.seed, *run.widen, "--json")
            facts["proof"] = json.loads(output)["proof"]
            facts["widen_cpu_seconds"] = seconds
            if glob.glob(os.path.join(folder, "checkpoints", "*.h5")):
                resume = "auto"
        self.amur("train", folder + ".yaml", "--run-dir", folder, "--resume", resume)
        if run.judged:
            output, _ = self.amur("eval", folder, "--json", "--set", "data.eval_split=test",
                                  "--set", "data.eval_limit=0")
            facts["test"] = json.loads(output)
        with open(folder + ".json.tmp", "w", encoding="utf-8") as out:
            json.dump(facts, out, indent=1)
        os.replace(folder + ".json.tmp", folder + ".json")

    def make_all(self, runs, jobs):
        """As a queue: the first run whose parent is done."""
        for data in sorted({run.data for run in runs.values()}):
            self.make_vocabulary(data)
        waiting, busy, failed = [r for r in runs.values() if not self.done(r)], set(), []
        changed = threading.Condition()

        def ready(run):
            return not run.parent or self.done(runs[run.parent])

        def work():
            while True:
                with changed:
                    while not (run := next((r for r in waiting if ready(r)), None)):
                        if not waiting or not busy or failed:
                            return
                        changed.wait()
                    if failed:
                        return
                    waiting.remove(run)
                    busy.add(run.name)
                try:
                    self.make(run)
                    print(f"done: {run.name}, {len(waiting)} left", flush=True)
                except Exception as error:  # told below, after the others have ended
                    failed.append(f"{run.name}: {error}")
                with changed:
                    busy.remove(run.name)
                    changed.notify_all()

        workers = [threading.Thread(target=work) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed:
            sys.exit("\n".join(failed))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("program")
    run.add_argument("folder")
    run.add_argument("--jobs", type=int, default=2)
    run.add_argument("--plan", choices=PLANS, default="full")
    run.add_argument("--only", nargs="*", help="runs whose name begins with one of these")
    report = commands.add_parser("report")
    report.add_argument("folder")
    report.add_argument("out")
    options = parser.parse_args()
    if options.command == "report":
        import growth_report

        growth_report.write(options.folder, options.out)
        return
    plan = PLANS[options.plan]
    runs = runs_of(plan)
    if options.only:
        wanted = {name for name in runs if name.startswith(tuple(options.only))}
        wanted |= {runs[name].parent for name in wanted}
        runs = {name: r for name, r in runs.items() if name in wanted}
    Workshop(options.program, options.folder, plan).make_all(runs, options.jobs)


if __name__ == "__main__":
    main()
