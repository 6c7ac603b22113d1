"""The number of ranks, the chunks and the activation budget are invisible in what is learned."""
import math

import numpy as np
import support

# Texts of very different length, so that the ranks' shares are uneven.
BASE = {"parallel.threads": 1, "train.schedule_steps": 201, "model.dropout": 0.1,
        "model.attention_dropout": 0.05, "model.word_dropout": 0.1}
GRIDS = [  # ranks, tensor-parallel, chunk_tokens, activation_budget
    (1, 1, 100000, "1GiB"), (2, 1, 64, "0"), (4, 1, 128, "600KB"), (8, 1, 40, "0"),
    (2, 2, 90, "100KB"), (4, 2, 300, "1GiB")]


def relative(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


class WorldSize(support.EndToEnd):
    samples = 900

    def losses(self, run_dir):
        losses = [line["loss"] for line in support.metrics(self.path(run_dir))]
        self.assertTrue(all(math.isfinite(loss) for loss in losses))
        return losses

    def test_double_precision(self):
        """200 steps with dropout: the same losses, weights and signs of the momentum."""
        values = BASE | {"train.precision": "fp64", "train.steps": 200}
        runs = []
        for ranks, tp, chunk_tokens, budget in GRIDS:
            name = f"r{ranks // tp}" + (f"x{tp}" if tp > 1 else "")
            self.train(name, values | {"parallel.tp": tp, "train.chunk_tokens": chunk_tokens,
                                       "train.activation_budget": budget}, ranks=ranks, limit=100)
            runs.append(name)
        losses = {name: self.losses(name) for name in runs}
        final = {name: support.datasets(support.checkpoint(self.path(name), 200)) for name in runs}
        self.assertEqual(len(losses["r1"]), 200)
        self.assertLess(losses["r1"][-1], 0.8 * losses["r1"][0])
        seen = support.columns(self.path("r1"), ("step", "epoch", "samples_seen", "truncated_texts"))
        for name in runs[1:]:
            self.assertLessEqual(relative(losses[name], losses["r1"]), 1e-9, name)
            self.assertEqual(support.columns(self.path(name), ("step", "epoch", "samples_seen",
                                                               "truncated_texts")), seen)
            self.assertEqual(final[name].keys(), final["r1"].keys())
            for tensor, value in final["r1"].items():
                other = final[name][tensor]
                if "/momentum/" in tensor:
                    # Nothing here is declared to have a zero gradient (no key bias), and rows that
                    # were never touched are exactly 0 everywhere.
                    signs = np.count_nonzero(np.sign(other) != np.sign(value))
                    self.assertEqual(signs, 0, f"{name}: signs of {tensor}")
                elif tensor.startswith("/model/"):
                    scale = np.sqrt(np.mean(np.square(value)))
                    self.assertLessEqual(np.max(np.abs(other - value)), 1e-9 * scale, tensor)
                else:
                    self.assertTrue(np.array_equal(other, value), tensor)
        # The chunks did differ.
        chunks = [support.metrics(self.path(name))[0]["chunks"] for name in runs]
        self.assertEqual(len(set(chunks)), len(chunks), chunks)
        # What the comparison can see: another seed is another run.
        self.train("seed", values | {"train.seed": 4, "train.steps": 3})
        self.assertGreater(relative(self.losses("seed"), losses["r1"][:3]), 1e-3)

    def test_initial_weights(self):
        """Bit for bit the same on every grid."""
        still = BASE | {"train.steps": 1, "optimizer.learning_rate": 0, "optimizer.weight_decay": 0,
                        "loss.scale_learning_rate": 0}
        weights = {}
        for name, ranks, seed in (("a", 1, 3), ("b", 3, 3), ("c", 8, 3), ("other", 1, 4)):
            self.train(name, still | {"train.seed": seed}, ranks=ranks)
            weights[name] = support.datasets(support.checkpoint(self.path(name), 1), ("/model",))

        def same(name):
            return {tensor for tensor, value in weights["a"].items()
                    if np.array_equal(weights[name][tensor], value)}

        self.assertEqual(same("b"), weights["a"].keys())
        self.assertEqual(same("c"), weights["a"].keys())
        self.assertNotIn("/model/encoder.embeddings.tokens", same("other"))

    def test_single_precision_step(self):
        """One step from the same state: at the beginning, on the way and late."""
        values = BASE | {"train.steps": 1, "checkpoint.keep": 10}
        for steps in (1, 20, 200):
            self.train("one", values | {"train.steps": steps})
        for steps in (1, 20, 200):
            saved = support.checkpoint(self.path("one"), steps)
            after = {}
            for ranks, chunk_tokens, budget in ((1, 256, "1GiB"), (2, 64, "0"), (3, 100000, "0")):
                name = f"{steps}-{ranks}"
                self.train(name, values | {"train.steps": steps + 1, "train.chunk_tokens": chunk_tokens,
                                           "train.activation_budget": budget},
                           "--resume", saved, ranks=ranks)
                after[ranks] = (self.losses(name)[-1],
                                support.metrics(self.path(name))[-1]["momentum_change"])
                self.assertEqual(support.metrics(self.path(name))[-1]["step"], steps + 1)
            for ranks in (2, 3):
                self.assertLessEqual(relative(after[ranks], after[1]), 1e-6, (steps, ranks))

    def test_single_precision_curve(self):
        """200 free steps: rounding grows where a momentum is near 0, but stays small."""
        values = BASE | {"train.steps": 200, "train.batch_size": 128}
        recalls, losses = [], []
        for ranks, chunk_tokens in ((1, 4096), (2, 128), (4, 256)):
            name = f"r{ranks}"
            result = self.train(name, values | {"train.chunk_tokens": chunk_tokens}, "--json",
                                ranks=ranks).json()
            recalls.append(result["evaluation"]["query_to_document"]["recall@1"])
            losses.append(self.losses(name))
        for other in losses[1:]:
            self.assertLessEqual(relative(other, losses[0]), 1e-3)
        self.assertLessEqual(max(recalls) - min(recalls), 0.01)

    def test_loss_in_bf16(self):
        """Products of the loss in bf16: nearly the losses of fp32, on one rank and on three."""
        runs = {"exact": ("fp32", 1), "rounded": ("bf16", 1), "spread": ("bf16", 3)}
        for name, (precision, ranks) in runs.items():
            self.train(name, BASE | {"train.steps": 40, "loss.precision": precision}, ranks=ranks)
        exact, rounded, spread = (self.losses(name) for name in runs)
        self.assertLess(exact[-1], 0.95 * exact[0])
        self.assertNotEqual(rounded, exact)
        self.assertLessEqual(relative(rounded[:1], exact[:1]), 1e-3)  # of the same weights
        self.assertLessEqual(relative(rounded, exact), 5e-2)
        self.assertLessEqual(relative(spread, rounded), 1e-3)
        self.refuses(self.run_in(*self.train_args("proof", {"loss.precision": "bf16", "train.precision": "fp64"})), 2,
                     "loss.precision")


if __name__ == "__main__":
    support.main()
