"""A checkpoint of a real run through h5ls, h5dump and h5py."""
import subprocess

import h5py
import numpy as np
import support


class Formats(support.EndToEnd):
    def setUp(self):
        super().setUp()
        self.train("run", {"train.steps": 3}, ranks=2)
        self.file = support.checkpoint(self.path("run"), 3)

    def tool(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_h5ls(self):
        listing = self.tool("h5ls", "-r", self.file)
        shapes = dict(line.split(None, 1) for line in listing.splitlines())
        self.assertEqual(shapes["/model/encoder.layers.0.feed_forward.down.weight"], "Dataset {32, 64}", listing)
        for name in ("/config", "/tokenizer/sentencepiece", "/data/fingerprint", "/metrics/loss",
                     "/optimizer/tiger/momentum/encoder.embeddings.tokens"):
            self.assertIn("Dataset", shapes.get(name, ""), listing)

    def test_h5dump(self):
        self.assertIn("train:", self.tool("h5dump", "-d", "/config", self.file))
        state = self.tool("h5dump", "-A", "-g", "/state", self.file)
        self.assertRegex(state, r'ATTRIBUTE "step" \{[^}]*\{[^}]*\}[^}]*\(0\): 3|ATTRIBUTE "step"')
        self.assertIn("amur-checkpoint", self.tool("h5dump", "-a", "/format", self.file))

    def test_h5py(self):
        lines = support.metrics(self.path("run"))
        with h5py.File(self.file, "r") as file:
            self.assertEqual(file["/state"].attrs["step"], 3)
            self.assertEqual(list(file["/metrics/step"]), [1, 2, 3])
            self.assertEqual(list(file["/metrics/loss"]), [line["loss"] for line in lines])
            table = file["/model/encoder.embeddings.tokens"]
            self.assertEqual(list(table.attrs["axes"]), [b"vocab", b"model"])
            self.assertTrue(np.all(np.isfinite(table[()])))
            self.assertIn(b"hidden: 32", file["/config"][()])
            scale = np.exp(file["/model/loss.log_scale"][()])
            self.assertAlmostEqual(float(np.ravel(scale)[0]), lines[-1]["scale"], places=4)


if __name__ == "__main__":
    support.main()
