"""How sums travel between ranks: what may differ in it, and what must not."""
import numpy as np
import support

BASE = {"parallel.threads": 1, "train.steps": 12, "checkpoint.every_steps": 6, "checkpoint.keep": 9,
        "model.layers": 2, "train.chunk_tokens": 128, "train.activation_budget": "100KB"}


class Sync(support.EndToEnd):
    def state(self, name, step=12):
        return {tensor: np.asarray(value).tobytes() for tensor, value in
                support.datasets(support.checkpoint(self.path(name), step)).items()}

    def total(self, name, column):
        return sum(line[column] for line in support.metrics(self.path(name)))

    def test_overlap_changes_no_bit(self):
        for kind in ({"model.towers": "shared"}, {"model.towers": "separate", "train.accumulate": 2}):
            for node_sync in ("true", "false"):
                states = {}
                for overlap in ("true", "false"):
                    # Three ranks share few chunks unevenly.
                    name = f"{kind['model.towers']}-{node_sync}-{overlap}"
                    self.train(name, BASE | kind | {"parallel.overlap_sync": overlap,
                                                    "parallel.node_sync": node_sync}, ranks=3)
                    states[overlap] = self.state(name)
                self.assertEqual(states["true"], states["false"])
                self.assertEqual(self.total(name, "sync_bytes_sent") > 0, node_sync == "false")
                self.assertGreater(self.total(name, "seconds_sync_under_way"), 0)

    def test_rounded_sums(self):
        """Inexact, but near; half of the bytes; and a run that stops goes on bit for bit."""
        messages = BASE | {"parallel.node_sync": "false"}
        rounded = messages | {"parallel.sync_precision": "bf16", "train.schedule_steps": 12}
        self.train("exact", messages, ranks=2)
        self.train("rounded", rounded, ranks=2)
        self.assertEqual(2 * self.total("rounded", "sync_bytes_sent"),
                         self.total("exact", "sync_bytes_sent"))
        losses = {name: np.array(support.columns(self.path(name), ("loss",)))
                  for name in ("exact", "rounded")}
        self.assertLess(np.max(np.abs(losses["rounded"] / losses["exact"] - 1)), 0.02)
        self.assertNotEqual(self.state("rounded"), self.state("exact"))
        self.train("halves", rounded | {"train.steps": 6}, ranks=2)
        self.train("halves", rounded, ranks=2)
        self.assertEqual(self.state("halves"), self.state("rounded"))
        self.refuses(self.run_in(*self.train_args("no", rounded | {"optimizer.kind": "adamw"}),
                                 ranks=2), 2, "parallel.sync_precision", "optimizer.kind tiger")


if __name__ == "__main__":
    support.main()
