"""A run that stops and goes on is the run that did not stop."""
import json
import os
import re
import signal
import subprocess

import h5py
import numpy as np
import support

BASE = {"parallel.threads": 1, "train.steps": 40, "eval.every_steps": 20, "checkpoint.every_steps": 20,
        "train.chunk_tokens": 128, "train.activation_budget": "100KB"}


class Resume(support.EndToEnd):
    def assert_same_state(self, a, b, step=40):
        left = support.datasets(support.checkpoint(self.path(a), step))
        right = support.datasets(support.checkpoint(self.path(b), step))
        self.assertEqual(left.keys(), right.keys())
        different = [name for name in left
                     if np.asarray(left[name]).tobytes() != np.asarray(right[name]).tobytes()]
        self.assertEqual(different, [])
        self.assertGreater(len(left), 10)

    def assert_same_columns(self, a, b):
        self.assertEqual(support.columns(self.path(a)), support.columns(self.path(b)))

    def steps_of(self, name):
        return [line["step"] for line in support.metrics(self.path(name))]

    def test_twenty_and_twenty(self):
        self.train("straight", BASE, ranks=2)
        # 700 samples are 11 batches: step 20 is inside the second epoch.
        self.assertEqual(support.metrics(self.path("straight"))[19]["epoch"], 1)
        halves = BASE | {"train.schedule_steps": 40}
        self.train("halves", halves | {"train.steps": 20}, ranks=2)
        self.assertEqual(self.steps_of("halves"), list(range(1, 21)))
        # A choice made by measuring, of a device that is not here, goes on with the run.
        with h5py.File(support.checkpoint(self.path("halves"), 20), "r+") as file:
            file["/measured"].attrs.create("product/a GPU", "7", dtype=h5py.string_dtype("utf-8", 1))
        again = self.train("halves", halves, ranks=2)
        self.assertNotIn("bits may differ", again.err)
        with open(self.path("halves", "choices.json"), encoding="utf-8") as file:
            record = json.load(file)
        self.assertEqual(record["choices"], {"product/a GPU": "7"})
        self.assertEqual(record["conditions"]["grid"], "dp 2, tp 1")
        shown = self.run_in("inspect", support.checkpoint(self.path("halves"), 40), "--json").json()
        self.assertEqual(shown["measured"], record["choices"])
        self.assertEqual(shown["conditions"], record["conditions"])
        self.assertRegex(again.err, r"resumed from .*step-00000020\.h5 at step 20")
        self.assertEqual(self.steps_of("halves"), list(range(1, 41)))
        self.assert_same_columns("straight", "halves")
        self.assert_same_state("straight", "halves")

        # What the comparison can see: a run that begins from the weights alone.
        self.train("other", BASE | {"train.seed": 9}, ranks=2)
        with self.assertRaises(AssertionError):
            self.assert_same_state("straight", "other")

        # At other rank counts: the same samples, and the losses up to rounding.
        straight = support.metrics(self.path("straight"))
        for ranks in (1, 3):
            name = f"on{ranks}"
            other = self.train(name, BASE, "--resume", support.checkpoint(self.path("straight"), 20),
                               ranks=ranks)
            self.assertRegex(other.err, rf"grid: dp 2, tp 1, now dp {ranks}, tp 1.*bits may differ")
            lines = support.metrics(self.path(name))
            self.assertEqual([line["step"] for line in lines], list(range(21, 41)))
            for line, reference in zip(lines, straight[20:], strict=True):
                self.assertEqual(line["samples_seen"], reference["samples_seen"])
                self.assertLessEqual(abs(line["loss"] - reference["loss"]), 1e-3 * reference["loss"])

    def test_start_from(self):
        sizes = {"model.hidden": 48, "model.heads": 3, "model.max_length": 40, "data.vocab_size": 300}
        self.train("first", {"train.steps": 4} | sizes, ranks=2)
        # What is of the model or the vocabulary comes from there.
        self.write("after.yaml", "data: {sources: [{format: tsv, path: eval.tsv}]}\n"
                   "train: {batch_size: 64, start_from: first}\ncheckpoint: {every_minutes: 0}\n")
        still = {"train.steps": 1, "optimizer.learning_rate": 0, "loss.learn_scale": "false",
                 "optimizer.warmup_steps": 0, "loss.scale": 11, "train.seed": 5}
        first = support.datasets(support.checkpoint(self.path("first"), 4), ("/model", "/tokenizer"))
        towers = {name for name in first if name.startswith("/model/") and "loss" not in name}
        for name, settings, ranks in (("same", {}, 2), ("shared", {"parallel.tp": 2}, 2),
                                      ("siglip", {"loss.kind": "siglip"}, 1)):
            # Steps, history and optimizer begin anew.
            done = self.train(name, still | settings, config="after.yaml", ranks=ranks)
            self.assertIn("weights and vocabulary of 'first', step 4", done.err)
            second = support.datasets(support.checkpoint(self.path(name), 1), ("/model", "/tokenizer"))
            for tensor in towers:
                self.assertEqual(first[tensor].tobytes(), second[tensor].tobytes(), f"{name}: {tensor}")
            self.assertAlmostEqual(float(second["/model/loss.log_scale"]), np.log(11), places=6)
            self.assertEqual(first["/tokenizer/sentencepiece"].tobytes(),
                             second["/tokenizer/sentencepiece"].tobytes())
        # What the comparison can see.
        self.train("moved", still | {"optimizer.learning_rate": 0.001}, config="after.yaml", ranks=2)
        moved = support.datasets(support.checkpoint(self.path("moved"), 1))
        self.assertTrue(all(first[t].tobytes() != moved[t].tobytes() for t in towers if "weight" in t))
        # It is resumed like any run, and its gradient is certified at these weights.
        self.train("moved", still | {"optimizer.learning_rate": 0.001, "train.steps": 2},
                   config="after.yaml", ranks=2)
        self.assertEqual(self.steps_of("moved"), [1, 2])
        proof = self.run_in("verify-grad", "after.yaml", "--samples", 24, *support.settings(
            {"parallel.tp": 2}), ranks=2)
        self.assertEqual(proof.code, 0, proof)
        # Another model is refused; so is a file that is none.
        for settings, words in (({"model.hidden": 96}, "is of another model"),
                                ({"train.start_from": "nowhere.h5"}, "train.start_from: ")):
            failed = self.run_in(*self.train_args("refused", still | settings, config="after.yaml"))
            self.assertNotEqual(failed.code, 0)
            self.assertIn(words, failed.err)

    def test_history_is_cut_back(self):
        """Steps after the checkpoint that is gone on from do not stand twice."""
        self.train("run", BASE | {"train.steps": 30, "train.schedule_steps": 40}, ranks=2)
        os.remove(support.checkpoint(self.path("run"), 30))
        self.train("run", BASE | {"train.schedule_steps": 40}, ranks=2)
        self.assertEqual(self.steps_of("run"), list(range(1, 41)))
        self.train("straight", BASE, ranks=2)
        self.assert_same_columns("straight", "run")
        self.assert_same_state("straight", "run")

    def interrupt(self, name, values, sign, after):
        job = self.start_in(*self.train_args(name, values), ranks=2)
        support.wait_until(lambda: len(support.metrics(self.path(name))) >= after)
        os.kill(job.pid, sign)
        return support.finish(job)

    def test_signal(self):
        """SIGUSR1 in the middle: a checkpoint, exit code 75, and the same run afterwards."""
        # A checkpoint each step makes the steps slow enough to be met.
        values = BASE | {"checkpoint.every_steps": 1, "eval.every_steps": 0, "data.eval_limit": 0}
        self.train("straight", values, ranks=2)
        stops = []
        for after in (6, 24):
            outcome = self.interrupt("stopped", values, signal.SIGUSR1, after)
            self.assertEqual(outcome.code, 75, outcome)
            at = int(re.search(r"stopped by SIGUSR1 at step (\d+)", outcome.err).group(1))
            stops.append(at)
            self.assertEqual(os.readlink(self.path("stopped", "checkpoints", "latest")),
                             f"step-{at:08}.h5")
            self.assertEqual(self.steps_of("stopped"), list(range(1, at + 1)))
        self.assertTrue(6 <= stops[0] < 24 <= stops[1] < 40, stops)
        self.train("stopped", values, ranks=2)
        self.assertEqual(self.steps_of("stopped"), list(range(1, 41)))
        self.assert_same_columns("straight", "stopped")
        self.assert_same_state("straight", "stopped")

    def test_checkpoints_beside_training(self):
        """Written while training goes on, they hold the same bits."""
        values = BASE | {"checkpoint.every_steps": 3, "checkpoint.keep": 30, "train.steps": 21}
        outcome = self.train("beside", values | {"checkpoint.async": "on"}, ranks=2)
        self.assertRegex(outcome.err, r"beside the training: [0-9.]+ MB a rank for the copy")
        self.assertRegex(outcome.err, r"waited [0-9.]+ s for the one before")
        self.train("between", values | {"checkpoint.async": "off", "checkpoint.compression": 1,
                                        "checkpoint.chunk_size": "16KB",
                                        "checkpoint.mpi_io_hints": "cb_nodes=1"}, ranks=2)
        self.assertEqual(support.checkpoints(self.path("beside")),
                         support.checkpoints(self.path("between")))
        for step in range(3, 22, 3):
            self.assert_same_state("beside", "between", step)
        self.assertEqual(os.readlink(self.path("beside", "checkpoints", "latest")),
                         "step-00000021.h5")

    def test_checkpoints_beside_training_where_a_core_is_left(self):
        """checkpoint.async: auto, on one core and, where there are two, on two."""
        values = BASE | {"train.steps": 2, "parallel.threads": 1}
        cores = sorted(os.sched_getaffinity(0))
        for count in {1, min(2, len(cores))}:
            outcome = support.finish(subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores[:count])), support.PROGRAM,
                 *self.train_args(f"on{count}", values)],
                stderr=subprocess.PIPE, text=True, cwd=self.folder))
            self.assertEqual(outcome.code, 0, outcome)
            self.assertRegex(outcome.err, rf"1 thread per rank \({count} cores?, as configured\)|container")
            self.assertEqual("beside the training" in outcome.err, count > 1, outcome)

    def test_finished_run(self):
        """Starting a finished run again changes nothing."""
        self.train("run", BASE)
        before = support.datasets(support.checkpoint(self.path("run"), 40))
        again = self.train("run", BASE, "--json").json()
        self.assertEqual((again["first_step"], again["steps"]), (40, 40))
        self.assertEqual(self.steps_of("run"), list(range(1, 41)))
        self.assertEqual(before.keys(),
                         support.datasets(support.checkpoint(self.path("run"), 40)).keys())

    def test_activation_budgets(self):
        """Whether activations are kept or computed again changes no bit."""
        recomputed = {}
        for name, budget in (("none", "0"), ("half", "400KB"), ("all", "1GiB")):
            self.train(name, BASE | {"train.activation_budget": budget}, ranks=2)
            lines = support.metrics(self.path(name))
            recomputed[name] = sum(line["recomputed_chunks"] for line in lines)
            chunks = sum(line["chunks"] for line in lines)
        self.assertEqual(recomputed["none"], chunks)
        self.assertEqual(recomputed["all"], 0)
        self.assertTrue(0 < recomputed["half"] < chunks, recomputed)
        for name in ("half", "all"):
            self.assert_same_columns("none", name)
            self.assert_same_state("none", name)


if __name__ == "__main__":
    support.main()
