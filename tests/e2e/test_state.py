"""Weights, and momenta, kept in bf16 (optimizer.state)."""
import os

import h5py
import numpy as np
import support

BASE = {"parallel.threads": 1, "train.steps": 12, "eval.every_steps": 0, "checkpoint.every_steps": 6,
        "checkpoint.keep": 9, "data.eval_limit": 20, "train.chunk_tokens": 128,
        "train.schedule_steps": 12}
WEIGHTS = {"optimizer.state": "bf16_weights"}
BOTH = {"optimizer.state": "bf16"}


def bits_of(dataset):
    """As they are stored: h5py itself converts bf16 to float32."""
    if dataset.dtype.itemsize == dataset.id.get_type().get_size():
        return dataset[()]
    raw = np.empty(dataset.shape, np.uint16)
    dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, mtype=dataset.id.get_type())
    return raw


class State(support.EndToEnd):
    def file(self, name, step=12):
        return support.checkpoint(self.path(name), step)

    def bits(self, name, step=12):
        found = {}
        with h5py.File(self.file(name, step)) as f:
            for group in ("/model", "/optimizer", "/state"):
                f[group].visititems(lambda path, item, group=group: found.update(
                    {f"{group}/{path}": bits_of(item)}) if isinstance(item, h5py.Dataset) else None)
        return found

    def assert_same_bits(self, a, b):
        left, right = self.bits(a), self.bits(b)
        self.assertEqual(left.keys(), right.keys())
        self.assertEqual([n for n in left if left[n].tobytes() != right[n].tobytes()], [])

    def stored_as(self, name, step=12):
        """Numbers of 2 and of 4 bytes in the file, by group."""
        count = {}
        for path, values in self.bits(name, step).items():
            key = (path.split("/")[1], values.dtype.itemsize)
            count[key] = count.get(key, 0) + values.size
        return count

    def test_goes_on_bit_for_bit(self):
        for name, state in (("weights", WEIGHTS), ("both", BOTH | {"train.precision": "bf16"})):
            straight = self.train(name, BASE | state, ranks=2)
            self.assertRegex(straight.err, r"training state of a rank: .* bytes a parameter; weights in bf16")
            self.train(f"{name}-halves", BASE | state | {"train.steps": 6}, ranks=2)
            self.train(f"{name}-halves", BASE | state, ranks=2)
            self.assert_same_bits(name, f"{name}-halves")
            self.assertEqual(support.columns(self.path(name)), support.columns(self.path(f"{name}-halves")))
            stored = self.stored_as(name)
            self.assertGreater(stored["model", 2], 10 * stored["model", 4])
            self.assertEqual(("optimizer", 2) in stored, name == "both")
            # At other grids: the same samples, nearly the same losses.
            lines = support.metrics(self.path(name))
            for ranks, grid in ((1, {}), (2, {"parallel.tp": 2})):
                other = f"{name}-{ranks}"
                self.train(other, BASE | state | grid, "--resume", self.file(name, 6), ranks=ranks)
                for line, reference in zip(support.metrics(self.path(other)), lines[6:], strict=True):
                    self.assertEqual(line["samples_seen"], reference["samples_seen"])
                    self.assertLessEqual(abs(line["loss"] - reference["loss"]),
                                         1e-2 * reference["loss"])
        # The noise is that of the seed and the step: another seed rounds otherwise.
        self.train("seed", BASE | WEIGHTS | {"train.seed": 9}, ranks=2)
        with self.assertRaises(AssertionError):
            self.assert_same_bits("weights", "seed")

    def test_learns_as_in_fp32(self):
        """The same losses within what the rounding of the weights brings."""
        curves = {}
        for name, state in (("fp32", {}), ("weights", WEIGHTS), ("both", BOTH)):
            self.train(name, BASE | {"train.steps": 40, "train.schedule_steps": 40} | state)
            curves[name] = np.array([line["loss"] for line in support.metrics(self.path(name))])
        gain = curves["fp32"][0] - curves["fp32"][-5:].mean()
        self.assertGreater(gain, 0.1)
        for name in ("weights", "both"):
            self.assertLess(abs(curves[name][-5:].mean() - curves["fp32"][-5:].mean()), 0.1 * gain, name)

    def test_other_optimizers(self):
        for kind in ("adamw", "lion"):
            values = BASE | WEIGHTS | {"optimizer.kind": kind, "optimizer.learning_rate": 1e-4,
                                       "train.steps": 6}
            self.train(kind, values, ranks=2)
            self.assertGreater(self.stored_as(kind, 6)["model", 2], 0)
            self.assertNotIn(("optimizer", 2), self.stored_as(kind, 6))

    def test_from_one_state_to_another(self):
        self.train("fp32", BASE | {"train.steps": 6})
        exact = support.datasets(self.file("fp32", 6))
        still = BASE | {"optimizer.learning_rate": 0, "loss.learn_scale": "true", "train.steps": 7}
        there = self.train("there", still | BOTH, "--resume", self.file("fp32", 6))
        self.assertIn("optimizer.state changes from fp32 to bf16", there.err)
        self.assertRegex(there.err, r"[0-9]+ tensors are rounded to bf16, to nearest")
        rounded = support.datasets(self.file("there", 7))
        for path, values in rounded.items():
            if path.startswith("/model/") and path.endswith(".weight") and values.ndim > 1:
                bits = np.ascontiguousarray(exact[path]).view(np.uint32)
                nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(np.float32)
                np.testing.assert_array_equal(values, nearest, path)
        back = self.train("back", still | {"train.steps": 8}, "--resume", self.file("there", 7))
        self.assertRegex(back.err, r"[0-9]+ tensors in bf16 are widened, exactly")
        widened = support.datasets(self.file("back", 8))
        for path, values in rounded.items():
            if path.startswith("/model/") and path.endswith(".weight") and values.ndim > 1:
                np.testing.assert_array_equal(values, widened[path], path)

    def test_commands(self):
        bert = {"model.norm_position": "post", "model.position": "learned"}
        self.train("run", BASE | BOTH | bert | {"train.precision": "bf16", "train.steps": 6}, ranks=2)
        source = self.file("run", 6)
        # h5dump and h5py see numbers; the check sum is that of the 16 bits.
        with h5py.File(source) as f:
            path = next(n for n in f["/model"] if n.endswith("qkv.weight"))
            table = f["/model"][path]
            self.assertEqual(table.dtype, np.float32)
            bits = bits_of(table)
            np.testing.assert_array_equal(
                (bits.astype(np.uint32) << 16).view(np.float32), table[()])
        report = self.run_in("inspect", source, "--verify", "--json").json()
        tensor = next(t for t in report["tensors"] if t["path"] == "/model/" + path)
        self.assertEqual((tensor["dtype"], tensor["damaged"]), ("bf16", False))
        self.assertAlmostEqual(tensor["rms"], float(np.sqrt(np.mean(np.square(
            (bits.astype(np.uint32) << 16).view(np.float32).astype(float))))), places=9)
        # Eval, embed and export read the numbers of the file; so does a run that starts from them.
        as_stored = self.run_in("eval", source, "--json").json()
        widened = self.run_in("eval", source, "--json", "--set", "optimizer.state=fp32").json()
        self.assertEqual(as_stored["query_to_document"], widened["query_to_document"])
        self.write("texts.txt", "ab cd\nef\n")
        self.assertEqual(self.run_in("export", "hf", source, "out").code, 0)
        exact = ("--set", "train.precision=fp32")
        for name, model, more in (("stored", source, exact),
                                  ("widened", source, (*exact, "--set", "optimizer.state=fp32")),
                                  ("exported", "out", ())):
            result = self.run_in("embed", model, "--input", "texts.txt", "--output", f"{name}.npy", *more)
            self.assertEqual(result.code, 0, result)
        for name in ("widened", "exported"):
            np.testing.assert_allclose(np.load(self.path("stored.npy")),
                                       np.load(self.path(f"{name}.npy")), atol=1e-6)
        self.write("after.yaml", "data: {sources: [{format: tsv, path: pairs.tsv, eval_path: eval.tsv}]}\n"
                   "train: {start_from: out, steps: 1, batch_size: 64}\n"
                   "optimizer: {learning_rate: 0, state: bf16}\n")
        self.train("after", config="after.yaml", ranks=2)
        with h5py.File(self.file("after", 1)) as f:
            np.testing.assert_array_equal(bits_of(f["/model"][path]), bits)
        # Widening takes it to fp32, where it is exact.
        wider = self.run_in("widen", source, "wide.h5", "--ffn", 128, "--json", ranks=2)
        self.assertEqual(wider.code, 0, wider)
        self.assertTrue(any("optimizer.state fp32" in note for note in wider.json()["warnings"]))
        with h5py.File(self.path("wide.h5")) as f:
            self.assertEqual(f["/model"][path].id.get_type().get_size(), 4)
            self.assertIn("state: fp32", f["/config"][()].decode())

    def test_certificate(self):
        for state, precision in ((WEIGHTS, "fp32"), (BOTH, "bf16")):
            proof = self.run_in("verify-grad", "small.yaml", "--samples", 24, *support.settings(
                state | {"train.precision": precision, "parallel.threads": 1}), ranks=2)
            self.assertEqual(proof.code, 0, proof)

    def test_refusals(self):
        for values, text in (
                ({"optimizer.state": "bf16", "optimizer.kind": "adamw"},
                 "bf16 needs optimizer.kind tiger"),
                ({"optimizer.state": "bf16", "optimizer.kind": "lion"}, "use bf16_weights"),
                ({"optimizer.state": "bf16_weights", "train.precision": "fp64"},
                 "train.precision fp64 is for proofs"),
                ({"optimizer.state": "bf16", "parallel.sync_precision": "bf16"},
                 "parallel.sync_precision bf16 rounds away"),
                ({"optimizer.state": "half"}, "found 'half'")):
            refused = self.train("refused", values, code=2)
            self.assertIn("optimizer.state", refused.err)
            self.assertIn(text, refused.err)
        self.assertFalse(os.path.exists(self.path("refused", "checkpoints")))


if __name__ == "__main__":
    support.main()
