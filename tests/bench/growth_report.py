"""Tables and plots of growth_pays.py, from the metrics.jsonl and evaluation.jsonl of its runs."""
import collections
import datetime
import glob
import json
import os
import platform
import re
import statistics

from svg_plot import plot

LOSS_SPAN = 60  # steps drawn on each side of a growth

HEAD = """\
# What growth saves

Written by `tests/bench/growth_pays.py report`; raw figures in `growth.json`.
[growth.md](../growth.md) says what follows from it.

A small model is trained, widened with `amur widen`, and trained on; the same large model is trained
from random weights. Within a seed all see the same samples in the same order, with the same
optimizer and rate. The target is the R@1 of the large model at its end; R@1 is the mean of both
directions, during training on a part of the validation split (in brackets: lowest and highest of
the seeds). *To the target* is the cost from the first random weights, the small model's share
included, to where the target is first reached, on a straight line between evaluations; *saved* is
in relation to the large model's own first arrival there, by seed; *saved at its own end*: the same
for the R@1 that a run ends with, whatever that is. Operations are `model_flops` of
`metrics.jsonl`. Processor time is the number of steps times the median `cpu_seconds` of a step of
that size, since a single step depends on what else the machine does, and the time of `amur widen`;
evaluations, which are as many in all runs, and start-up are left out.

"""

ABLATIONS = """
### One change at a time

One seed, on validation data: differences below the spread of the seeds mean nothing. What a label
does not name is as in the runs above: noise of 10 dB, the schedule of the small model going on.
*Large, ... steps*: the large model from random weights with a schedule of so many steps. *Large
width, ...*: no growth; as wide as the large model, with layers a sixth of the size.

"""


def json_lines(path):
    """The objects of a file by step; of an interrupted run the last of a step."""
    with open(path, encoding="utf-8") as lines:
        return {line["step"]: line for line in map(json.loads, lines)}


class Finished:
    """A run that is done: what it cost until each step, and how good it was."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.facts = json.load(file)
        for name in ("name", "data", "seed", "label", "steps", "parent", "moment"):
            setattr(self, name, self.facts[name])
        folder = path.removesuffix(".json")
        self.size = ", ".join(f"{key} {value}" for key, value in self.facts["size"].items())
        self.metrics = json_lines(os.path.join(folder, "metrics.jsonl"))
        evaluations = json_lines(os.path.join(folder, "evaluation.jsonl"))
        # The mean of both directions.
        self.recall = {step: statistics.mean(e[way]["recall@1"] for way in
                                             ("query_to_document", "document_to_query"))
                       for step, e in sorted(evaluations.items())}

    @property
    def final(self):
        return self.recall[self.steps]

    def test(self):
        return statistics.mean(self.facts["test"][way]["recall@1"]
                               for way in ("query_to_document", "document_to_query"))


class Results:
    def __init__(self, folder):
        paths = glob.glob(os.path.join(folder, "*", "*", "*.json"))
        self.runs = {run.name: run for run in map(Finished, sorted(paths))}
        seconds = collections.defaultdict(list)
        for run in self.runs.values():
            seconds[run.data, run.size] += [line["cpu_seconds"] for line in run.metrics.values()]
        self.step_seconds = {key: statistics.median(values) for key, values in seconds.items()}

    def flops(self, run, step):
        """Operations from random weights to `step`, which may lie between two steps."""
        begin = self.flops(self.runs[run.parent], run.moment) if run.parent else 0
        whole = int(step)
        own = sum(line["model_flops"] for s, line in run.metrics.items() if s <= whole)
        if step > whole:
            own += (step - whole) * run.metrics[whole + 1]["model_flops"]
        return begin + own

    def seconds(self, run, step):
        """Processor seconds: steps times the median step of their size, and the widening."""
        own = self.step_seconds[run.data, run.size]
        if not run.parent:
            return own * step
        begin = self.seconds(self.runs[run.parent], run.moment)
        return begin + self.facts_seconds(run) + own * (step - run.moment)

    @staticmethod
    def facts_seconds(run):
        return run.facts["widen_cpu_seconds"]

    def target(self, run):
        """Final R@1 of the large model from random weights, same data and seed."""
        return self.runs[f"{run.data}/{run.seed}/large"].final

    @staticmethod
    def crossing(run, target):
        """First step at which R@1 is that of `target`, between evaluations on a straight line;
        None: never."""
        before = None
        for step, recall in run.recall.items():
            if recall >= target:
                if before is None:
                    return step
                share = (target - before[1]) / (recall - before[1])
                return before[0] + share * (step - before[0])
            before = (step, recall)
        return None

    def row(self, run):
        """The figures of a run."""
        large = self.runs[f"{run.data}/{run.seed}/large"]
        target = self.target(run)
        step, at = self.crossing(run, target), self.crossing(large, target)
        out = {"name": run.name, "data": run.data, "seed": run.seed, "label": run.label,
               "final": run.final, "target": target, "step": step,
               "final_flops": self.flops(run, run.steps),
               "final_seconds": self.seconds(run, run.steps)}
        if "test" in run.facts:
            out["test"] = run.test()
        if "proof" in run.facts:
            out["max_cosine_difference"] = run.facts["proof"]["max_cosine_difference"]
        if step is not None:
            out["flops"], out["seconds"] = self.flops(run, step), self.seconds(run, step)
            out["flops_saved"] = 1 - out["flops"] / self.flops(large, at)
            out["seconds_saved"] = 1 - out["seconds"] / self.seconds(large, at)
        same = self.crossing(large, run.final)
        if same is not None:
            out["flops_saved_there"] = 1 - out["final_flops"] / self.flops(large, same)
            out["seconds_saved_there"] = 1 - out["final_seconds"] / self.seconds(large, same)
        return out

    def curve(self, run):
        """(operations, R@1), the small model's part included."""
        points = []
        if run.parent:
            parent = self.runs[run.parent]
            points = [(self.flops(parent, s) * 1e-12, r) for s, r in parent.recall.items()
                      if s <= run.moment]
        return points + [(self.flops(run, s) * 1e-12, r) for s, r in run.recall.items()]


def percent(values, signed=False):
    sign = "+" if signed else ""
    text = f"{100 * statistics.mean(values):{sign}.1f}"
    if len(values) > 1:
        text += f" ({100 * min(values):{sign}.1f} .. {100 * max(values):{sign}.1f})"
    return text


def groups(rows):
    found = collections.defaultdict(list)
    for row in rows:
        found[row["data"], row["label"]].append(row)
    return found


def reached(rows):
    return [row for row in rows if row["step"] is not None]


def saved_cells(rows, what, unit, scale):
    """Mean cost to the target, and what of the large model's is saved."""
    done = reached(rows)
    saved = percent([r[what + "_saved"] for r in done]) if done else "-"
    if len(done) < len(rows):
        return f"reached by {len(done)} of {len(rows)}", saved
    return f"{statistics.mean(r[what] for r in done) * scale:.4g} {unit}", saved


def saved_there(rows, what):
    """Saved at the R@1 that a run ends with; nothing where that is above all of the large model."""
    known = [row[f"{what}_saved_there"] for row in rows if f"{what}_saved_there" in row]
    return percent(known) if len(known) == len(rows) else "-"


def main_tables(rows, results):
    yield "### Operations to the large model's final R@1\n\n"
    yield "| data | training | seeds | R@1 at the end, % | test split, % | to the target | "
    yield "saved, % | saved at its own end, % |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for (data, label), group in rows.items():
        cost, saved = saved_cells(group, "flops", "TFLOP", 1e-12)
        yield (f"| {data} | {label} | {len(group)} | {percent([r['final'] for r in group])} | "
               f"{percent([r['test'] for r in group])} | {cost} | {saved} | "
               f"{saved_there(group, 'flops')} |\n")
    yield "\n### Processor time to the large model's final R@1\n\n"
    yield "| data | training | to the target | saved, % | the large model takes | "
    yield "saved at its own end, % |\n| --- | --- | --- | --- | --- | --- |\n"
    for (data, label), group in rows.items():
        cost, saved = saved_cells(group, "seconds", "s", 1)
        done = reached(group)
        times = statistics.mean(1 / (1 - r["seconds_saved"]) for r in done) if done else 0
        yield (f"| {data} | {label} | {cost} | {saved} | {f'{times:.2f} x' if done else '-'} | "
               f"{saved_there(group, 'seconds')} |\n")
    steps = "; ".join(f"{data}, {size}: {1000 * seconds:.0f} ms"
                      for (data, size), seconds in sorted(results.step_seconds.items()))
    widen = [r.facts["widen_cpu_seconds"] for r in results.runs.values() if r.parent]
    yield f"\nA step takes, in the median over all runs: {steps}."
    if widen:
        yield f" `amur widen` takes {statistics.median(widen):.1f} s.\n"


def ablation_table(rows):
    yield "| run | seeds | R@1 at the end, % | against the large model | TFLOP in all | "
    yield "to the target | saved, % | saved at its own end, % |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for (_, label), group in rows.items():
        cost, saved = saved_cells(group, "flops", "TFLOP", 1e-12)
        yield (f"| {label} | {len(group)} | {percent([r['final'] for r in group])} | "
               f"{percent([r['final'] - r['target'] for r in group], signed=True)} | "
               f"{statistics.mean(r['final_flops'] for r in group) * 1e-12:.4g} | {cost} | "
               f"{saved} | {saved_there(group, 'flops')} |\n")


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":")[1].strip() for line in lines if "model name" in line),
                    platform.machine())


def draw(results, out):
    """The plots, by name of file."""
    for data in sorted({run.data for run in results.runs.values()}):
        shown = [run for run in results.runs.values() if run.data == data and "test" in run.facts]
        order = ["large", "small"] + sorted({r.label for r in shown} - {"large", "small"})
        shown.sort(key=lambda run: (order.index(run.label), run.seed))
        targets = {results.target(run) for run in shown}
        plot(os.path.join(out, f"growth-{data}.svg"),
             f"{data}: R@1 while training, {len(targets)} seeds; dashed: the large model at its end",
             "operations, TFLOP", "R@1", [(run.label, results.curve(run)) for run in shown],
             [("large", target) for target in targets])
        grown = [run for run in shown if run.parent]
        if not grown:
            continue
        run = min(grown, key=lambda r: (r.moment, r.seed))
        low, high = run.moment - LOSS_SPAN, run.moment + LOSS_SPAN
        lines = [(name, [(s, line["loss"]) for s, line in sorted(source.metrics.items())
                         if low <= s <= high and line["loss"] is not None])
                 for name, source in (("small", results.runs[run.parent]), ("grown", run),
                                      ("large", results.runs[f"{data}/{run.seed}/large"]))]
        plot(os.path.join(out, f"growth-{data}-loss.svg"),
             f"{data}, seed {run.seed}: training loss across the growth", "step", "loss", lines,
             marks=[("widened", run.moment + 0.5)])


def write(folder, out):
    results = Results(folder)
    os.makedirs(out, exist_ok=True)
    rows = [results.row(run) for run in results.runs.values()
            if f"{run.data}/{run.seed}/large" in results.runs and
            (not run.parent or run.parent in results.runs)]
    order = {"large": 0, "small": 1}
    rows.sort(key=lambda r: (r["data"], order.get(r["label"], 2), r["label"], r["seed"]))
    main_rows = [row for row in rows if "test" in row]
    seeds = {row["seed"] for row in rows if "test" not in row}
    data = {row["data"] for row in rows if "test" not in row}
    ablations = [row for row in rows if row["seed"] in seeds and row["data"] in data]
    with open(os.path.join(out, "growth.json"), "w", encoding="utf-8") as file:
        for row in rows:
            run = results.runs[row["name"]]
            row["recall@1"] = [[s, round(r, 5)] for s, r in run.recall.items()]
        lines = ",\n".join(" " + json.dumps(row) for row in rows)
        seconds = {f"{d} {w}": s for (d, w), s in results.step_seconds.items()}
        file.write(f'{{"step_cpu_seconds": {json.dumps(seconds)},\n"runs": [\n{lines}\n]}}\n')
    draw(results, out)
    with open(os.path.join(out, "growth.md"), "w", encoding="utf-8") as file:
        file.write(HEAD)
        for data in sorted({run.data for run in results.runs.values()}):
            file.write(f"![R@1 against operations](growth-{data}.svg)\n\n")
        file.write(f"Machine: {processor()}, {os.cpu_count()} cores. "
                   f"Date: {datetime.date.today().isoformat()}.\n\n")
        file.write("".join(main_tables(groups(main_rows), results)))
        if ablations:
            file.write(ABLATIONS)
            file.write("".join(ablation_table(groups(ablations))))
