"""`amur widen`: the same embeddings, the same training, the same bits on any number of ranks."""
import os
import struct
import subprocess

import h5py
import numpy as np
import support

# Even splits commute with Tiger where nothing is random in training.
EXACT = {"train.precision": "fp64", "model.dropout": 0, "parallel.threads": 1, "eval.every_steps": 0,
         "train.schedule_steps": 60}
SIZES = ("--hidden", 64, "--heads", 4, "--ffn", 128)


class Growth(support.EndToEnd):
    samples = 300

    def widen(self, source, target, *options, ranks=1, code=0):
        outcome = self.run_in("widen", self.path(source), self.path(target), *options, ranks=ranks)
        self.assertEqual(outcome.code, code, outcome)
        return outcome

    def small(self, name="small", values=None, steps=10):
        settings = {"model.hidden": 32, "model.heads": 2, "model.ffn": 64, "model.head_size": 16,
                    "train.batch_size": 32} | (values or {})
        self.settings = settings
        self.train(name, settings | {"train.steps": steps})
        return os.path.join(name, "checkpoints", f"step-{steps:08}.h5")

    def tensors(self, name):
        return support.datasets(self.path(name), ("/model", "/optimizer"))

    def commutes(self, name, values, steps):
        """Trains 10 steps, widens, trains both on; returns the small checkpoint and the tensors of the large run."""
        small, last = self.small(name, EXACT | values), 10 + steps
        self.widen(small, f"{name}.h5", *SIZES, "--split", "even", "--config", self.path("big.yaml"))
        # The same training, of both.
        self.train(name, self.settings | {"train.steps": last})
        self.train(f"{name}_big", {"train.steps": last}, "--resume", f"{name}.h5", config="big.yaml")
        self.widen(f"{name}/checkpoints/step-{last:08}.h5", "expected.h5", *SIZES, "--split", "even")
        expected = self.tensors("expected.h5")
        found = self.tensors(f"{name}_big/checkpoints/step-{last:08}.h5")
        self.assertEqual(expected.keys(), found.keys())
        moved = self.tensors(f"{name}.h5")
        signs = 0
        for tensor, value in expected.items():
            value, other = np.asarray(value, float), np.asarray(found[tensor], float)
            self.assertLessEqual(np.abs(value - other).max(), 1e-12, tensor)
            if "momentum" in tensor:
                signs += np.sum(np.sign(value) != np.sign(other))
            if tensor.startswith("/model/encoder.layers") and tensor.endswith("weight"):
                self.assertGreater(np.abs(other - moved[tensor]).max(), 1e-5, tensor)
        self.assertEqual(signs, 0)
        return small, found

    def test_widening_commutes_with_fifty_tiger_steps(self):
        self.commutes("post", {"model.norm_position": "post", "model.norm": "rms", "model.activation": "geglu"}, 10)
        small, found = self.commutes("small", {}, 50)

        # What the comparison can see: a decay that does not follow the width, and noise.
        self.widen(small, "flat.h5", *SIZES, "--split", "even")
        with h5py.File(self.path("flat.h5"), "r+") as file:
            for tensor in file["/model"].values():
                if tensor.attrs["decay_multiplier"] == 2:
                    tensor.attrs.modify("decay_multiplier", 1.0)
        self.train("flat", {"train.steps": 60}, "--resume", "flat.h5", config="big.yaml")
        flat = self.tensors("flat/checkpoints/step-00000060.h5")
        self.assertGreater(max(np.abs(flat[n] - found[n]).max() for n in found), 1e-10)
        self.widen(small, "noisy.h5", *SIZES)
        self.train("noisy", {"train.steps": 60}, "--resume", "noisy.h5", config="big.yaml")
        noisy = self.tensors("noisy/checkpoints/step-00000060.h5")
        self.assertGreater(max(np.abs(noisy[n] - found[n]).max() for n in found), 1e-4)
        # Copies of a unit stay alike after an even split, and part after noise (W7).
        up = "/model/encoder.layers.0.feed_forward.up.weight"
        for tensors, apart in ((found, False), (noisy, True)):
            half = tensors[up].sum(axis=1)
            difference = np.abs(half[:64] - half[64:]).max()
            (self.assertGreater if apart else self.assertLess)(difference, 1e-6 if apart else 1e-12)

    def test_same_bits_at_any_number_of_ranks(self):
        small = self.small()
        self.widen(small, "one.h5", *SIZES)
        self.widen(small, "two.h5", *SIZES, ranks=2)
        again = ("--ffn", 200, "--layers", 3, "--positions", 80)
        self.widen("one.h5", "one_again.h5", *again)
        self.widen("two.h5", "two_again.h5", *again, "--proof-ranks", 2, ranks=2)
        for a, b in (("one.h5", "two.h5"), ("one_again.h5", "two_again.h5")):
            left, right = self.tensors(a), self.tensors(b)
            self.assertEqual(left.keys(), right.keys())
            for name, value in left.items():
                self.assertEqual(np.asarray(value).tobytes(), np.asarray(right[name]).tobytes(), name)
        other = self.widen(small, "other.h5", *SIZES, "--seed", 9) and self.tensors("other.h5")
        up = "/model/encoder.layers.0.feed_forward.up.weight"
        self.assertNotEqual(other[up].tobytes(), self.tensors("one.h5")[up].tobytes())

    def test_memory_does_not_grow_with_the_model(self):
        small = self.small(steps=1)
        peaks, bytes_read = [], []
        for layers in (1, 8):
            source, target = self.path(f"of{layers}.h5"), self.path("grown.h5")
            self.widen(small, source, "--hidden", 512, "--heads", 16, "--ffn", 2048, "--layers", layers,
                       "--no-proof")
            job = subprocess.Popen(support.command(["widen", source, target, "--ffn", 3000, "--no-proof"], 0),
                                   stdout=subprocess.DEVNULL)
            _, job.returncode, usage = os.wait4(job.pid, 0)
            self.assertEqual(job.returncode, 0)
            peaks.append(usage.ru_maxrss * 1024)
            bytes_read.append(os.path.getsize(source))
        self.assertGreater(bytes_read[1] - bytes_read[0], 140e6)
        self.assertLess(peaks[1] - peaks[0], 20e6, peaks)
        lineage = self.run_in("inspect", "grown.h5", "--json").json()["lineage"]
        self.assertEqual(lineage[-1]["proof"], "skipped")

    def test_train_small_grow_train_on(self):
        small = self.small(steps=20)
        result = self.widen(small, "big.h5", *SIZES, "--json", "--config", self.path("big.yaml"))
        proof = result.json()["proof"]
        self.assertTrue(proof["pass"])
        self.assertLessEqual(proof["max_difference"], 5e-6)
        # Distances between the distributions of queries and documents stay, too; 10 pairs a
        # coordinate, a ridge of 1e-3.
        compared = self.run_in("compare", small, "big.h5", "--json", ranks=2)
        self.assertEqual(compared.code, 0, compared)
        self.assertLessEqual(compared.json()["largest_change"], 1e-6)
        lineage = self.run_in("inspect", "big.h5", "--json", "--verify").json()["lineage"]
        self.assertEqual(lineage[0]["to"]["hidden"], 64)
        self.assertEqual(lineage[0]["proof"]["max_difference"], proof["max_difference"])
        self.train("big", {"train.steps": 30}, "--resume", "big.h5", config="big.yaml")
        lines = support.metrics(self.path("big"))
        # Any grid goes on from it, with the same losses up to rounding.
        self.train("shared", {"train.steps": 25, "train.schedule_steps": 30, "parallel.tp": 2}, "--resume", "big.h5",
                   config="big.yaml", ranks=2)
        for line, other in zip(lines, support.metrics(self.path("shared")), strict=False):
            self.assertLessEqual(abs(line["loss"] - other["loss"]), 1e-3 * line["loss"])
        self.assertEqual([line["step"] for line in lines], list(range(21, 31)))
        # It goes on, it does not begin again.
        first = support.metrics(self.path("small"))[0]["loss"]
        self.assertLess(lines[0]["loss"], first)
        self.assertEqual(self.run_in("compare", "big.h5", "big").code, 5)
        # The small configuration is not that of the big model.
        self.refuses(self.run_in(*self.train_args("other", self.settings, "--resume", "big.h5")), 2,
                     "model.hidden: 64 in the checkpoint, 32 now")
        # An index built before growth gives the same neighbours after it (W8); a frozen projection
        # keeps the size of embeddings, and stays what it was.
        texts = self.write("texts.txt", "\n".join(q for q, _ in support.pairs(100, seed=3)))
        rows = []
        for name in (small, "big.h5"):
            out = self.path("rows.npy")
            self.assertEqual(self.run_in("embed", name, "--input", texts, "--output", out).code, 0)
            rows.append(np.load(out))
        self.assertEqual(rows[0].shape, rows[1].shape)
        index, queries = rows[0][:80], [r[80:] for r in rows]
        for old, new in zip(*(np.argmax(q @ index.T, axis=1) for q in queries), strict=True):
            self.assertEqual(old, new)
        projection = "/model/encoder.projection.weight"
        trained = self.tensors("big/checkpoints/step-00000030.h5")
        self.assertEqual(trained[projection].tobytes(), self.tensors("big.h5")[projection].tobytes())

    # Every optimizer goes on from its widened state, under any precision; together the cases grow
    # every axis, and give the new configuration another schedule.
    def test_every_optimizer_trains_on(self):
        cases = (
            ("lion", {"optimizer.kind": "lion", "optimizer.learning_rate": 0.0005, "model.norm_position": "post"},
             (*SIZES, "--layers", 2), ["momentum"], 1e-5),
            ("adamw", {"optimizer.kind": "adamw", "optimizer.learning_rate": 0.003, "model.position": "rotary",
                       "model.activation": "swiglu"},
             ("--head-size", 40, "--head-growth", "copies", "--heads", 3, "--ffn", 65), ["first_moment", "second_moment"],
             1e-5),
            ("tiger", {"train.precision": "bf16", "model.norm": "rms"},
             ("--hidden", 72, "--positions", 40, "--layers", 3), ["momentum"], 1e-2))
        for kind, values, sizes, slots, bound in cases:
            with self.subTest(kind):
                small = self.small(f"{kind}_small", values | {"model.dropout": 0, "model.word_dropout": 0})
                self.widen(small, f"{kind}.h5", *sizes, "--split", "even", "--warmup-steps", 4, "--decay-steps", 8,
                           "--config", self.path("big.yaml"))
                self.train(f"{kind}_small", self.settings | {"train.steps": 14})
                self.train(f"{kind}_big", {"train.steps": 18}, "--resume", f"{kind}.h5", config="big.yaml")
                old = support.metrics(self.path(f"{kind}_small"))[10:]
                new = support.metrics(self.path(f"{kind}_big"))
                # The first loss is that of the small model, and the others fall with it.
                self.assertLessEqual(abs(new[0]["loss"] - old[0]["loss"]), bound * old[0]["loss"])
                self.assertLess(new[-1]["loss"], old[0]["loss"])
                rates = [line["learning_rate"] / values.get("optimizer.learning_rate", 0.004) for line in new]
                for rate, expected in zip(rates, (0.25, 0.5, 0.75, 1, 0.7625, 0.525, 0.2875, 0.05), strict=True):
                    self.assertAlmostEqual(rate, expected, places=6)
                before, grown = self.tensors(small), self.tensors(f"{kind}.h5")
                after = self.tensors(f"{kind}_big/checkpoints/step-00000018.h5")
                for slot in slots:
                    name = f"/optimizer/{kind}/{slot}/encoder.layers.0.feed_forward.up.weight"
                    self.assertGreater(np.abs(grown[name]).max(), 0)
                    self.assertLess(before[name].size, grown[name].size)
                    self.assertGreater(np.abs(after[name] - grown[name]).max(), 0)

    # A vocabulary that begins with the old one: the same embeddings, and training goes on with it.
    def test_a_larger_vocabulary(self):
        small = self.small()
        with h5py.File(self.path(small), "r") as file:
            old = file["/tokenizer/sentencepiece"][()].tobytes()

        def entry(piece, score):
            text = piece.encode()
            body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
            return b"\x0a" + bytes([len(body)]) + body

        def vocabulary(name, data):
            with open(self.path(name), "wb") as out:
                out.write(data)
            return self.path(name)

        larger = vocabulary("larger.model", old + entry("\u2581zyx", -9.0) + entry("\u2581wvu", -9.5))
        self.widen(small, "big.h5", "--vocab", larger, "--ffn", 128, "--config", self.path("big.yaml"))
        table = "/model/encoder.embeddings.tokens"
        rows, more = self.tensors(small)[table], self.tensors("big.h5")[table]
        self.assertEqual(len(more), len(rows) + 2)
        self.assertEqual(more[: len(rows)].tobytes(), rows.tobytes())
        self.assertGreater(np.abs(more[-1] - more[-2]).max(), 0)
        texts = self.write("texts.txt", "\n".join(q for q, _ in support.pairs(20, seed=3)) + "\nzyx wvu\n")
        found = []
        for name in (small, "big.h5"):
            out = self.path("rows.npy")
            self.assertEqual(self.run_in("embed", name, "--input", texts, "--output", out).code, 0)
            found.append(np.load(out))
        difference = np.abs(found[0] - found[1]).max(axis=1)
        self.assertLessEqual(difference[:-1].max(), 5e-6)
        self.assertGreater(difference[-1], 1e-3)  # it has words of its own now
        # Another vocabulary is none that the table could belong to.
        changed = bytearray(old)
        changed[changed.find("\u2581".encode(), 100) + 3] ^= 1
        self.refuses(self.widen(small, "no.h5", "--vocab", vocabulary("changed.model", bytes(changed)), code=2), 2,
                     "begins with all the old tokens")
        self.train("big", {"train.steps": 14}, "--resume", "big.h5", config="big.yaml")

    def test_what_cannot_be_exact(self):
        small = self.small(steps=2)
        self.refuses(self.widen(small, "no.h5", "--hidden", 40, code=2), 2, "multiple of 32",
                     "--old-statistics")
        self.refuses(self.widen(small, "no.h5", code=2), 2, "nothing to widen")
        self.refuses(self.widen(small, "no.h5", *SIZES, "--proof-ranks", 3, code=2), 2, "a divisor of the number of ranks, 1")
        # Noise that rounding cannot cancel makes another function: no file.
        outcome = self.widen(small, "no.h5", *SIZES, "--noise-db=-120", code=5)
        self.assertIn("ANOTHER FUNCTION", outcome.out)
        self.assertEqual([n for n in os.listdir(self.folder) if n.startswith("no.h5")], [])
        plan = self.widen(small, "no.h5", *SIZES, "--plan").out
        self.assertRegex(plan, r"feed_forward\.down\.weight +\[32, 64\] -> \[64, 128\] +model: 2 copies; "
                               r"ffn: split over 2 \(noise\)")
        self.assertFalse(os.path.exists(self.path("no.h5")))
        self.widen(small, "yes.h5", "--hidden", 40, "--old-statistics")


if __name__ == "__main__":
    support.main()
