"""A tensor-parallel group is invisible: in what is learned, in checkpoints, in every command."""
import json

import numpy as np
import support

# 5 heads, 22 feed-forward units and a vocabulary that no group divides.
BASE = {"parallel.threads": 1, "model.heads": 5, "model.head_size": 4, "model.ffn": 22,
        "model.dropout": 0.1, "model.attention_dropout": 0.1, "train.precision": "fp64",
        "train.chunk_tokens": 200, "train.activation_budget": "100KB", "train.schedule_steps": 40,
        "eval.every_steps": 0, "data.eval_limit": 60, "checkpoint.every_steps": 12,
        "parallel.check_replicas_every_steps": 4}


class TensorParallel(support.EndToEnd):
    def run_at(self, name, dp, tp, steps, *more, **values):
        return self.train(name, BASE | {"parallel.tp": tp, "train.steps": steps} | values, *more,
                          ranks=dp * tp, limit=120)

    def losses(self, name):
        return [line["loss"] for line in support.metrics(self.path(name))]

    def assert_close(self, ours, theirs, bound=1e-9):
        for a, b in zip(ours, theirs, strict=True):
            self.assertLessEqual(abs(a - b), bound * abs(b))

    def test_saved_at_one_grid_resumed_at_others(self):
        self.run_at("straight", 2, 2, 24)
        straight = support.metrics(self.path("straight"))
        self.assertLess(straight[-1]["loss"], 0.9 * straight[0]["loss"])
        saved = support.checkpoint(self.path("straight"), 12)

        # From the beginning on one rank: the same losses, weights and state.
        self.run_at("one", 1, 1, 24)
        self.assert_close(self.losses("one"), self.losses("straight"))
        for step in (12, 24):
            ours = support.datasets(support.checkpoint(self.path("straight"), step))
            theirs = support.datasets(support.checkpoint(self.path("one"), step))
            self.assertEqual(ours.keys(), theirs.keys())
            for name, value in theirs.items():
                if np.asarray(value).dtype.kind == "f":
                    scale = np.sqrt(np.mean(np.square(value))) + 1e-300
                    self.assertLessEqual(np.max(np.abs(ours[name] - value)), 1e-9 * scale, name)
                else:
                    self.assertTrue(np.array_equal(ours[name], value), name)

        # The check sums of the file are verified by each of these grids, and the samples that
        # follow are the same.
        for dp, tp in ((1, 1), (4, 1), (1, 4), (3, 1), (2, 4)):
            name = f"{dp}x{tp}"
            self.run_at(name, dp, tp, 18, "--resume", saved)
            lines = support.metrics(self.path(name))
            self.assertEqual([line["step"] for line in lines], list(range(13, 19)))
            self.assert_close(self.losses(name), self.losses("straight")[12:18])
            for line, reference in zip(lines, straight[12:18], strict=True):
                for column in ("samples_seen", "epoch", "truncated_texts"):
                    self.assertEqual(line[column], reference[column])
                self.assertLessEqual(abs(line["momentum_change"] - reference["momentum_change"]),
                                     1e-9 * reference["momentum_change"])

        # At the same grid, bit for bit.
        self.run_at("halves", 2, 2, 12)
        self.run_at("halves", 2, 2, 24)
        self.assertEqual(support.columns(self.path("straight")), support.columns(self.path("halves")))
        left, right = (support.datasets(support.checkpoint(self.path(name), 24))
                       for name in ("straight", "halves"))
        self.assertEqual([name for name in left if np.asarray(left[name]).tobytes()
                          != np.asarray(right[name]).tobytes()], [])
        # What that sees: one rank's run is equal to rounding, but not to the bit.
        one = support.datasets(support.checkpoint(self.path("one"), 24))
        self.assertNotEqual([name for name in left if np.asarray(left[name]).tobytes()
                             != np.asarray(one[name]).tobytes()], [])

    def test_commands(self):
        self.run_at("run", 1, 2, 12)
        with open(self.path("texts.txt"), "w", encoding="utf-8") as out:
            out.write("".join(f"{query}\n" for query, _ in support.pairs(40, seed=5)))
        scores, vectors, counts = [], [], []
        # A checkpoint of 1 x 2 is used by any number of ranks, as its grid is not their affair.
        for ranks, tp in ((1, 1), (3, 1), (4, 2)):
            grid = ("--set", f"parallel.tp={tp}") if tp > 1 else ()
            scores.append(self.run_in("eval", "run", "--json", *grid, ranks=ranks).json())
            output = f"{ranks}.npy"
            result = self.run_in("embed", "run", "--input", "texts.txt", "--output", output, "--json",
                                 *grid, ranks=ranks).json()
            counts.append((result["texts"], result["tokens"], result["truncated"]))
            vectors.append(np.load(self.path(output)))
        self.assertEqual(len(set(counts)), 1, counts)
        for other in scores[1:]:
            for direction in ("query_to_document", "document_to_query"):
                self.assertEqual(other[direction], scores[0][direction])
        self.assertTrue(np.array_equal(vectors[1], vectors[0]))
        self.assertLessEqual(np.max(np.abs(vectors[2] - vectors[0])), 1e-13)
        self.assertFalse(np.array_equal(vectors[2], vectors[0]))  # it was another sum

        certificate = self.run_in("verify-grad", "small.yaml", "--json", "--samples", 64,
                                  *support.settings(BASE | {"parallel.tp": 2}), ranks=4).json()
        self.assertTrue(certificate["pass"], json.dumps(certificate))
        self.assertEqual(certificate["ranks"], 4)

    def test_grids_that_do_not_fit(self):
        for ranks, values, texts in (
                (3, {"parallel.tp": 2}, ("3 ranks are not dp 1 x tp 2", "parallel.tp")),
                (1, {"parallel.tp": 2}, ("1 rank are not dp 1 x tp 2", "start 2 ranks")),
                (3, {"parallel.tp": 3, "model.heads": 2}, ("3 ranks cannot share model.heads of 2",
                                                          "use at most 2")),
                (4, {"parallel.tp": 4, "model.ffn": 3}, ("4 ranks cannot share model.ffn of 3",))):
            outcome = self.run_in(*self.train_args("refused", BASE | values), ranks=ranks)
            self.refuses(outcome, 2, *texts)


if __name__ == "__main__":
    support.main()
