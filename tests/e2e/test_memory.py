"""Bytes of resident memory that a parameter costs in training.

Tiger in fp32 holds a weight and one momentum: 8 bytes, 6 and 4 with the states of
optimizer.state. AdamW holds a weight, a gradient and two
moments: 16. A gradient buffer under Tiger would make 12 of its 8.
"""
import sys

import support

LAYERS = (1, 2, 4)
# Few and short texts, so that activations are small beside the parameters of a layer; no copy for
# checkpoints beside the training, which takes as much again.
BASE = {"parallel.threads": 1, "checkpoint.async": "off",
        "model.hidden": 768, "model.heads": 12, "model.ffn": 3072,
        "train.steps": 4, "train.batch_size": 4, "train.activation_budget": "0",
        "checkpoint.every_steps": 2, "checkpoint.keep": 1, "data.eval_limit": 4}


class Memory(support.EndToEnd):
    samples = 100

    def setUp(self):
        super().setUp()
        with open(self.path("pairs.tsv"), "w", encoding="utf-8") as out:
            for query, document in support.pairs(self.samples, longest=2):
                out.write(f"{query}\t{document}\n")

    def slope(self, name, values, ranks=1):
        """Least squares over the model sizes, of the peak of the worst rank."""
        points = []
        for layers in LAYERS:
            run_dir = f"{name}-{layers}"
            self.train(run_dir, BASE | values | {"model.layers": layers}, ranks=ranks, limit=100)
            report = self.run_in("inspect", run_dir, "--brief", "--json", ranks=0).json()
            points.append((report["parameters"], max(
                line["peak_resident_bytes"] for line in support.metrics(self.path(run_dir)))))
        n = len(points)
        x = sum(p for p, _ in points) / n
        y = sum(b for _, b in points) / n
        slope = (sum((p - x) * (b - y) for p, b in points)
                 / sum((p - x) ** 2 for p, _ in points))
        print(f"{name}: {slope:.2f} bytes a parameter, {(y - slope * x) / 1e6:.0f} MB besides",
              file=sys.stderr)
        return slope

    def test_tiger(self):
        self.assertAlmostEqual(self.slope("one chunk", {}), 8.0, delta=0.4)
        self.assertAlmostEqual(self.slope("chunks", {"train.chunk_tokens": 8}), 8.0, delta=0.4)
        chunks = support.metrics(self.path("chunks-1"))[0]["chunks"]
        self.assertGreater(chunks, 2)
        self.assertAlmostEqual(self.slope("two ranks", {}, ranks=2), 8.0, delta=0.4)

    def test_state_in_bf16(self):
        """Weights in bf16 make 6 of the 8, momenta too 4; copies of both in fp32 would make 12."""
        for state, bytes_each in (("bf16_weights", 6.0), ("bf16", 4.0)):
            slope = self.slope(state, {"optimizer.state": state, "train.chunk_tokens": 8})
            self.assertAlmostEqual(slope, bytes_each, delta=0.4)

    def test_adamw(self):
        slope = self.slope("adamw", {"optimizer.kind": "adamw", "optimizer.learning_rate": 1e-4})
        self.assertAlmostEqual(slope, 16.0, delta=0.8)


if __name__ == "__main__":
    support.main()
