"""Training of an imported model against PyTorch, live (see live.py): the gradients of one step, ten
steps of AdamW, and what sentence-transformers' evaluator says of a model that was trained here.

AMUR_LIVE_STEPS sets for how many steps that one is trained.
"""
import json
import math
import os
import unicodedata

import live
import numpy as np
import support
from peers import write_texts
from test_exchange import FIXTURES

SCALE, RATE, EPSILON = 20, 2e-5, 1e-8
PAIRS = 48

# One batch of all pairs, no dropout. The first moment of AdamW with beta1 = 0 is the gradient.
STEP = """\
data: {{sources: [{{format: tsv, path: batch.tsv}}], eval_share: 0}}
model: {{dropout: 0, attention_dropout: 0}}
loss: {{scale: {scale}, scale_learning_rate: 0}}
optimizer: {{kind: adamw, learning_rate: {rate}, epsilon: {epsilon}, weight_decay: 0,
            schedule: piecewise, schedule_points: [{{step: 0, factor: 1}}]}}
train: {{start_from: base.h5, batch_size: {pairs}, steps: 1}}
parallel: {{threads: 1}}
checkpoint: {{every_minutes: 0}}
"""

TUNE = """\
data: {{sources: [{{format: tsv, path: train.tsv, eval_path: held-out.tsv}}]}}
model: {{max_length: 64}}
optimizer: {{kind: adamw, learning_rate: 0.0002, warmup_steps: 10}}
train: {{start_from: base.h5, batch_size: 32, steps: {steps}}}
parallel: {{threads: 1}}
checkpoint: {{every_minutes: 0}}
"""

# ranks, tokens of a chunk (1: every text alone), kept activations, tensor-parallel ranks
LAYOUTS = [(1, 4096, "1GiB", 1), (1, 97, "0", 1), (1, 1, "20MiB", 1), (2, 4096, "1GiB", 1),
           (2, 200, "5MiB", 1), (4, 4096, "0", 1), (4, 64, "1GiB", 1), (2, 300, "0", 2),
           (4, 128, "1GiB", 2)]


def names(layers):
    """Tensors of Amur, and those of BERT whose rows they are, key biases aside."""
    found = {"embeddings.tokens": ["embeddings.word_embeddings.weight"],
             "embeddings.positions": ["embeddings.position_embeddings.weight"],
             "embeddings.token_type": ["embeddings.token_type_embeddings.weight"]}
    norms = {"embeddings.norm": "embeddings.LayerNorm"}
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        attention = f"{theirs}.attention.self"
        found[f"{ours}.attention.qkv.weight"] = [f"{attention}.{n}.weight" for n in ("query", "key", "value")]
        found[f"{ours}.attention.qkv.bias"] = [f"{attention}.{n}.bias" for n in ("query", "value")]
        for a, b in (("attention.output", "attention.output.dense"),
                     ("feed_forward.up", "intermediate.dense"), ("feed_forward.down", "output.dense")):
            for kind in ("weight", "bias"):
                found[f"{ours}.{a}.{kind}"] = [f"{theirs}.{b}.{kind}"]
        norms[f"{ours}.attention.norm"] = f"{theirs}.attention.output.LayerNorm"
        norms[f"{ours}.feed_forward.norm"] = f"{theirs}.output.LayerNorm"
    for a, b in norms.items():
        found |= {f"{a}.gain": [f"{b}.weight"], f"{a}.bias": [f"{b}.bias"]}
    return {f"encoder.{a}": b for a, b in found.items()}


def modernbert_names(layers):
    """The same of ModernBERT, which has no norm in front of its first attention."""
    found = {"embeddings.tokens": "embeddings.tok_embeddings.weight",
             "embeddings.norm.gain": "embeddings.norm.weight", "norm.gain": "final_norm.weight"}
    for i in range(layers):
        for a, b in (("attention.norm.gain", "attn_norm"), ("attention.qkv.weight", "attn.Wqkv"),
                     ("attention.output.weight", "attn.Wo"), ("feed_forward.norm.gain", "mlp_norm"),
                     ("feed_forward.up.weight", "mlp.Wi"), ("feed_forward.down.weight", "mlp.Wo")):
            if i > 0 or b != "attn_norm":
                found[f"layers.{i}.{a}"] = f"layers.{i}.{b}.weight"
    return {f"encoder.{a}": [b] for a, b in found.items()}


def gathered(theirs, ours, known=None):
    """PyTorch's tensors under the names of Amur's and in their order (the first of the token types)."""
    found = {}
    known = known or names(6)
    left = {name for name in ours.keys() - known.keys() if not name.endswith("attention.key.bias")}
    assert left == {"loss.log_scale"}, left
    for name, parts in known.items():
        value = np.concatenate([theirs[part].ravel() for part in parts]).astype(np.float64)
        found[name] = value[:ours[name].size]
    return found


def relative_errors(ours, theirs):
    """Of every tensor, as src/train/verify_gradient.h defines it."""
    rms = math.sqrt(sum(np.sum(g * g) for g in theirs.values()) / sum(g.size for g in theirs.values()))
    return {name: np.linalg.norm(ours[name].ravel() - g) /
            max(np.linalg.norm(g), 1e-3 * math.sqrt(g.size) * rms) for name, g in theirs.items()}


def plain(text):
    decomposed = unicodedata.normalize("NFKD", text.strip()).casefold()
    return "".join(c for c in decomposed if not unicodedata.combining(c))


class Training(live.Live):
    def prepare(self, folder=None):
        folder = folder or self.minilm()
        write_texts(self.path("batch.tsv"), "wordnet", PAIRS)
        self.write("step.yaml", STEP.format(scale=SCALE, rate=RATE, epsilon=EPSILON, pairs=PAIRS))
        self.amur("import", "hf", folder, "base.h5")
        return folder

    def tensors(self, run, group):
        run = self.path(run)
        found = support.datasets(support.checkpoint(run, len(support.metrics(run))), (group,))
        return {name.removeprefix(group + "/"): value for name, value in found.items()}

    def gradient(self, run, values, ranks):
        """Loss and gradients of one step."""
        self.train(run, {"optimizer.beta1": 0} | values, config="step.yaml", ranks=ranks)
        return support.metrics(self.path(run))[0]["loss"], self.tensors(run, "/optimizer/adamw/first_moment")

    def test_gradients_are_those_of_autograd(self):
        minilm = self.prepare()
        for precision in ("fp64", "fp32"):
            self.ask("peer_training.py", "gradients", minilm, "batch.tsv", precision + ".npz", SCALE,
                     precision)
        references = {p: dict(np.load(self.path(p + ".npz"))) for p in ("fp64", "fp32")}

        def compare(what, values, ranks):
            """The largest error of a tensor against each reference, and that of the loss."""
            loss, ours = self.gradient("run", values, ranks)
            found = {}
            for precision, theirs in references.items():
                errors = relative_errors(ours, gathered(theirs, ours))
                errors["scale"] = (abs(ours["loss.log_scale"].item() - theirs["loss.log_scale"]) /
                                   theirs["loss.log_scale:size"])
                worst = max(errors, key=errors.get)
                of_loss = abs(loss - theirs["loss"]) / theirs["loss"]
                print(f"{what}, PyTorch {precision}: {errors[worst]:.1e} ({worst}), "
                      f"scale {errors['scale']:.1e}, loss {of_loss:.1e}")
                found[precision] = errors[worst], of_loss
            support.shutil.rmtree(self.path("run"))
            return found

        for ranks, tokens, budget, shared in LAYOUTS:
            values = {"train.chunk_tokens": tokens, "train.activation_budget": budget, "parallel.tp": shared}
            for errors in compare(f"{ranks} ranks, {values}", values, ranks).values():
                self.assertLessEqual(errors[0], 1e-5)
                self.assertLessEqual(errors[1], 1e-6)
        # What must be seen: a scale one thousandth off, and batches that do not know of each other.
        for values in ({"loss.scale": SCALE * 1.001},
                       {"train.batch_size": PAIRS // 2, "train.accumulate": 2}):
            for errors in compare(f"on purpose, {values}", values, 1).values():
                self.assertGreater(errors[0], 1e-4)
                self.assertGreater(errors[1], 1e-5)

    def test_gradients_of_local_layers(self):
        # Texts of up to 20 tokens, of which two of four layers see 4 on either side.
        folder = self.prepare(os.path.join(FIXTURES, "modernbert"))
        self.ask("peer_training.py", "gradients", folder, "batch.tsv", "peer.npz", SCALE, "fp64")
        theirs = dict(np.load(self.path("peer.npz")))
        for i, (ranks, tokens, budget, shared) in enumerate(LAYOUTS[1::3]):
            loss, ours = self.gradient(f"run-{i}", {
                "train.chunk_tokens": tokens, "train.activation_budget": budget,
                "parallel.tp": shared}, ranks)
            errors = relative_errors(ours, gathered(theirs, ours, modernbert_names(4)))
            worst = max(errors, key=errors.get)
            print(f"{ranks} ranks, chunks of {tokens}, tp {shared}: {errors[worst]:.1e} ({worst})")
            self.assertLessEqual(errors[worst], 1e-5)
            self.assertLessEqual(abs(loss - theirs["loss"]) / theirs["loss"], 1e-6)

    def test_ten_steps_stay_together(self):
        minilm = self.prepare()
        self.ask("peer_training.py", "steps", minilm, "batch.tsv", "steps.npz", SCALE, RATE, EPSILON, 10)
        theirs = np.load(self.path("steps.npz"))
        before = support.datasets(self.path("base.h5"), ("/model",))

        def compare(what, ranks, values):
            """How far losses and moves are from PyTorch's, relatively."""
            run = "run-" + what
            self.train(run, {"train.steps": 10, "train.chunk_tokens": 200} | values, config="step.yaml", ranks=ranks)
            losses = [line["loss"] for line in support.metrics(self.path(run))]
            apart = np.max(np.abs(np.array(losses) / theirs["losses"] - 1))
            ours = self.tensors(run, "/model")
            moves = {}
            for name, value in gathered(theirs, ours).items():
                start = before["/model/" + name].ravel().astype(np.float64)
                moves[name] = (np.linalg.norm(ours[name].ravel() - value) /
                               np.linalg.norm(value - start))
            worst = max(moves, key=moves.get)
            print(f"ten steps, {what}: losses {losses[0]:.6f} to {losses[-1]:.6f}, {apart:.1e} apart; "
                  f"moves {moves[worst]:.1e} apart ({worst})")
            self.assertLess(losses[-1], 0.9 * losses[0])
            return apart, moves[worst]

        for ranks in (1, 2):
            losses, moves = compare(f"{ranks}-ranks", ranks, {})
            self.assertLessEqual(losses, 1e-4)  # of a last loss that is a fifteenth of the first
            self.assertLessEqual(moves, 1e-3)
        # What must be seen: another decay of the first moment.
        losses, moves = compare("on-purpose", 1, {"optimizer.beta1": 0.89})
        self.assertGreater(losses, 5e-4)
        self.assertGreater(moves, 5e-3)

    def test_the_evaluator_reports_the_same(self):
        steps, held_out = int(os.environ.get("AMUR_LIVE_STEPS", "20")), 1000
        write_texts(self.path("all.tsv"), "wordnet", 4500)
        seen, lines = set(), []
        with open(self.path("all.tsv"), encoding="utf-8") as file:
            for line in file:
                # The model knows neither case nor accents: texts that it takes for one would tie.
                key = {plain(text) for text in line.split("\t")}
                if not key & seen:
                    seen |= key
                    lines.append(line)
        self.write("held-out.tsv", "".join(lines[:held_out]))
        self.write("train.tsv", "".join(lines[held_out:]))
        self.write("tune.yaml", TUNE.format(steps=steps))
        self.amur("import", "hf", self.minilm(), "base.h5")
        self.amur("export", "hf", "base.h5", "before")
        self.train("run", config="tune.yaml", ranks=2, limit=900)
        self.amur("export", "hf", "run", "out", ranks=2)
        for folder, evaluated in (("before", ("before", "--data", "held-out.tsv")), ("out", ("run",))):
            ours = self.amur("eval", *evaluated, "--json", ranks=2).json()
            theirs = json.loads(self.ask("peer_training.py", "retrieval", folder, "held-out.tsv"))
            for way, values in theirs.items():
                self.assertEqual((ours[way]["queries"], ours[way]["documents"]), (held_out, held_out))
                for metric, value in values.items():
                    print(f"{folder}, {way}, {metric}: {ours[way][metric]:.6f}, "
                          f"sentence-transformers {value:.6f}")
                    self.assertLessEqual(abs(ours[way][metric] - value), 1e-4)


if __name__ == "__main__":
    support.unittest.main()
