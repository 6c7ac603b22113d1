"""`train.growth`: a run grows on its way, and ends in the same bits whether it is stopped before, at or
behind that, or never."""
import os

import h5py
import support

LIST = "[{at_step: 6, hidden: 64, heads: 4, ffn: 128}]"
SETTINGS = {"model.head_size": 16, "train.batch_size": 32, "train.steps": 12, "train.schedule_steps": 12,
            "checkpoint.every_steps": 4, "checkpoint.keep": 10, "parallel.threads": 1, "train.growth": LIST}
LAST = 12


class GrowthRun(support.EndToEnd):
    samples = 300

    def end_of(self, run):
        return support.datasets(support.checkpoint(self.path(run), LAST))

    def ends_as(self, run, other):
        expected, found = self.end_of(other), self.end_of(run)
        self.assertEqual(expected.keys(), found.keys())
        for name, value in expected.items():
            self.assertEqual(value.tobytes(), found[name].tobytes(), f"{run}: {name}")
        lines = support.columns(self.path(run))
        self.assertEqual(lines, support.columns(self.path(other))[-len(lines):], run)

    def test_growing_is_going_on(self):
        self.train("whole", SETTINGS, ranks=2)
        lines = support.metrics(self.path("whole"))
        self.assertEqual([line["step"] for line in lines], list(range(1, LAST + 1)))
        self.assertEqual([line["step"] for line in lines if "growth" in line], [7])
        growth = lines[6]["growth"]
        self.assertTrue(growth["proof"]["pass"])
        self.assertEqual((growth["from"]["hidden"], growth["to"]["hidden"]), (32, 64))
        lineage = self.run_in("inspect", support.checkpoint("whole", LAST), "--json").json()["lineage"]
        self.assertEqual([(entry["step"], entry["to"]["ffn"]) for entry in lineage], [(6, 128)])
        with open(self.path("whole", "log.txt"), encoding="utf-8") as log:
            self.assertIn("embeddings: largest difference", log.read())
        # The run's configuration stays the one that began it.
        with open(self.path("whole", "config.yaml"), encoding="utf-8") as config:
            self.assertIn("at_step: 6", config.read())

        # Stopped before, at and behind it. At it the model is still small.
        for name, steps in (("before", 4), ("at", 6), ("behind", 7)):
            self.train(name, SETTINGS | {"train.steps": steps}, ranks=2)
            self.train(name, SETTINGS, ranks=2)
            self.ends_as(name, "whole")
            self.assertEqual([l["step"] for l in support.metrics(self.path(name)) if "growth" in l], [7])
        # From the grown file of that step itself; and with the configuration that a checkpoint carries.
        self.train("from", SETTINGS, "--resume", support.checkpoint("whole", 6), ranks=2)
        self.ends_as("from", "whole")
        with h5py.File(support.checkpoint(self.path("whole"), 8), "r") as file:
            self.write("grown.yaml", file["/config"][()].decode())
        self.train("carried", {}, "--resume", support.checkpoint("whole", 8), config="grown.yaml", ranks=2)
        self.ends_as("carried", "whole")
        # Killed while it grows, or so.
        job = self.start_in(*self.train_args("killed", SETTINGS), ranks=2)

        def growing():
            try:
                with open(self.path("killed", "log.txt"), encoding="utf-8") as log:
                    return "growing from" in log.read()
            except FileNotFoundError:
                return False

        support.wait_until(growing)
        support.remove(job)
        self.train("killed", SETTINGS, ranks=2)
        self.ends_as("killed", "whole")

        # Shared layers: the same losses up to rounding.
        self.train("shared", SETTINGS | {"parallel.tp": 2}, ranks=2)
        for line, other in zip(lines, support.metrics(self.path("shared")), strict=True):
            self.assertLessEqual(abs(line["loss"] - other["loss"]), 1e-3 * line["loss"])

        # What contradicts the checkpoint.
        def resumed(change):
            return self.run_in(*self.train_args("whole", SETTINGS | {"train.growth": change, "train.steps": 14}))

        self.refuses(resumed(LIST.replace("ffn: 128", "ffn: 192")), 2, "grew at step 6 with ffn 128, the list says 192")
        self.refuses(resumed(LIST.replace("at_step: 6", "at_step: 5")), 2, "did not grow there (it grew at step 6)")
        self.refuses(resumed("[]"), 2, "model.hidden: 64 in the checkpoint, 32 now", "the model has grown")

    def test_configuration_errors(self):
        with open(self.path("small.yaml"), encoding="utf-8") as config:
            small = config.read()
        growth = """\
  growth:
    - at_step: 4
      hidden: 64
    - at_step: 8
      hidden: 100
"""
        at = small.index("checkpoint:")
        small = small[:at].replace("train: {batch_size: 64, chunk_tokens: 256, steps: 10, seed: 3}",
                                   "train:\n  batch_size: 64\n  steps: 10\n" + growth) + small[at:]
        self.write("grow.yaml", small)
        line = small.splitlines().index("      hidden: 100") + 1
        self.refuses(self.run_in(*self.train_args("run", {}, config="grow.yaml")), 2,
                     f"grow.yaml:{line}: train.growth.1.hidden: ", "hidden 100: with LayerNorm an exact width is")
        self.refuses(self.run_in(*self.train_args("run", {"train.growth.1.hidden": 64}, config="grow.yaml")), 2,
                     f"grow.yaml:{line - 1}: train.growth.1.at_step: nothing grows at step 8")
        self.refuses(self.run_in(*self.train_args("run", {"train.growth.1.at_step": 3}, config="grow.yaml")), 2,
                     "3 does not come after the one before it, 4")
        self.refuses(self.run_in(*self.train_args("run", {"train.growth": "[{at_step: 2, hiden: 64}]"})), 2,
                     "train.growth.0.hiden: unknown key (did you mean hidden?)")
        self.assertFalse(os.path.exists(self.path("run")))


if __name__ == "__main__":
    support.main()
