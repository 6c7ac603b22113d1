"""What a user can do wrong, and what a machine can: one message, the right code, nothing broken."""
import gzip
import json
import os
import resource
import signal
import subprocess
import unittest

import support


class Errors(support.EndToEnd):
    def refused(self, code, *texts, values=None, more=(), run_dir="run", ranks=2, **options):
        outcome = self.run_in(*self.train_args(run_dir, {"parallel.threads": 1} | (values or {}), *more),
                              ranks=ranks, **options)
        return self.refuses(outcome, code, *texts)

    def nothing_written(self, run_dir="run"):
        self.assertEqual(support.metrics(self.path(run_dir)), [])
        if os.path.isdir(self.path(run_dir, "checkpoints")):
            self.assertEqual(os.listdir(self.path(run_dir, "checkpoints")), [])
        self.assertEqual(support.temporary_files(self.folder), [])

    # The configuration.

    def test_every_mistake_at_once(self):
        self.write("bad.yaml", "model: {layers: two}\ntrain:\n  bach_size: 8\n  steps: -4\n"
                               "optimiser:\n  kind: tiger\nloss:\n  kind: infonse\n")
        outcome = self.run_in("train", "bad.yaml", "--run-dir", "run", ranks=2)
        self.refuses(outcome, 2, "bad.yaml:1: model.layers", "bad.yaml:3: train.bach_size: unknown key "
                     "(did you mean train.batch_size?)", "bad.yaml:4: train.steps", "bad.yaml:5: optimiser",
                     "bad.yaml:8: loss.kind")
        self.assertFalse(os.path.exists(self.path("run")))

    def test_unknown_override(self):
        self.refused(2, "train.stps", values={"train.stps": 4})

    def test_no_configuration(self):
        self.refuses(self.run_in("train", "absent.yaml", ranks=2), 2, "absent.yaml")
        self.refuses(self.run_in("train", ranks=2), 2, "CONFIG")

    def test_not_yaml(self):
        self.write("broken.yaml", "model: [1, 2\ntrain: {")
        self.refuses(self.run_in("train", "broken.yaml", ranks=2), 2, "broken.yaml:")

    def test_impossible_grid(self):
        self.refused(2, "parallel.dp", values={"parallel.dp": 3})

    def test_wordpiece(self):
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
        file = {"version": "1.0", "normalizer": None, "pre_tokenizer": {"type": "BertPreTokenizer"},
                "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
                "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "",
                          "max_input_chars_per_word": 100,
                          "vocab": {token: i for i, token in enumerate(tokens)}}}
        self.write("tokenizer.json", json.dumps(file))
        self.write("other.json", json.dumps(dict(file, normalizer={"type": "NFC"})))
        named = {"data.tokenizer_model": "tokenizer.json"}
        ours = {"data.tokenizer": "wordpiece"}
        self.refused(2, "set data.tokenizer_model to a Hugging Face tokenizer.json", values=ours)
        self.refused(2, "holds wordpiece: set data.tokenizer to wordpiece", values=named)
        self.refused(2, "data.subword_sampling: only sentencepiece draws segmentations",
                     values=ours | named | {"data.subword_sampling": 0.1})
        self.refused(2, "other.json: normalizer.type is \"NFC\"",
                     values=ours | {"data.tokenizer_model": "other.json"})
        self.nothing_written()
        # The checkpoint carries the file, byte for byte.
        self.train("right", ours | named | {"train.steps": 2}, ranks=2)
        kept = support.datasets(support.checkpoint(self.path("right"), 2), ["/tokenizer"])
        with open(self.path("tokenizer.json"), "rb") as source:
            self.assertEqual(bytes(kept["/tokenizer/wordpiece"]), source.read())
        self.train("right", ours | named | {"train.steps": 3}, ranks=1)

    def test_threads_that_come_late(self):
        # Open MPI's own thread first runs while MPI_Finalize takes down what it is to call.
        busy = dict(os.environ, LD_PRELOAD=os.environ["AMUR_STRANGE_HOST"], STRANGE_THREAD="2")
        outcome = self.run_in(*self.train_args("run", {"parallel.dp": 3}), ranks=2, env=busy)
        self.refuses(outcome, 2, "parallel.dp")
        self.assertIn("progress thread is held", outcome.err)

    # Data.

    def test_missing_data(self):
        os.remove(self.path("pairs.tsv"))
        self.refused(4, "pairs.tsv")
        self.nothing_written()

    def test_missing_evaluation_data(self):
        os.remove(self.path("eval.tsv"))
        self.refused(4, "eval.tsv")
        self.nothing_written()

    def test_malformed_lines(self):
        with open(self.path("pairs.tsv"), "a", encoding="utf-8") as out:
            out.write("no tab here\n")
        with open(self.path("pairs.tsv"), "ab") as out:
            out.write(b"bad \xff\xfe bytes\tx\n")
        outcome = self.refused(2, "2 malformed lines", "data.malformed")
        self.assertIn("701", outcome.err)
        self.assertIn("702", outcome.err)
        self.nothing_written()
        skipped = self.train("skip", {"data.malformed": "skip", "train.steps": 2}, ranks=2)
        self.assertEqual(skipped.err.count("2 malformed lines skipped"), 1, skipped)

    def test_empty_data(self):
        self.write("pairs.tsv", "")
        self.refused(2, "pairs.tsv holds no training pairs")

    def test_broken_gzip(self):
        with open(self.path("pairs.tsv"), "rb") as plain:
            packed = gzip.compress(plain.read())
        with open(self.path("pairs.tsv.gz"), "wb") as out:
            out.write(packed[:len(packed) // 2])
        self.refused(4, "cannot be decompressed", values={"data.sources.0.path": "pairs.tsv.gz"})
        self.nothing_written()

    # Run folders.

    def test_unwritable_folder(self):
        self.write("file", "")
        self.refused(4, "file/run", run_dir="file/run")
        # Not even root may write there.
        self.refused(4, "/proc/run", run_dir="/proc/run")

    def test_folder_in_use(self):
        job = self.start_in(*self.train_args("run", {"train.steps": 100000, "parallel.threads": 1}))
        support.wait_until(lambda: support.metrics(self.path("run")) or job.poll() is not None)
        before = len(support.metrics(self.path("run")))
        self.refused(2, "run folder 'run' is in use by process")
        os.kill(job.pid, signal.SIGUSR1)
        self.assertEqual(support.finish(job).code, 75)
        self.assertGreaterEqual(len(support.metrics(self.path("run"))), before)

    def test_never_resumes(self):
        self.train("run", {"train.steps": 2})
        self.refused(2, "--resume never", more=("--resume", "never"))

    # Resuming.

    def test_changed_data(self):
        self.train("run", {"train.steps": 4})
        support.write_tsv(self.path("pairs.tsv"), self.samples, seed=7)
        outcome = self.refused(2, "the data files changed", values={"train.steps": 8})
        self.assertEqual(len(support.metrics(self.path("run"))), 4, outcome)

    def test_other_model(self):
        self.train("run", {"train.steps": 4})
        self.refused(2, "model.layers", "train.seed", values={
            "train.steps": 8, "model.layers": 2, "train.seed": 8})
        self.refused(2, "optimizer.kind", values={"train.steps": 8, "optimizer.kind": "adamw"})
        self.assertEqual(len(support.metrics(self.path("run"))), 4)
        self.refuses(self.run_in("eval", "run", "--set", "model.layers=2", ranks=2), 2,
                     "model.layers")

    def test_no_checkpoint(self):
        self.refused(4, "absent.h5", more=("--resume", "absent.h5"))
        os.mkdir(self.path("empty"))
        self.refuses(self.run_in("eval", "empty", ranks=2), 2, "holds no complete checkpoint")
        self.write("text.h5", "this is no HDF5 file, but long enough to look at\n" * 50)
        for command in (["eval", "text.h5"], ["inspect", "text.h5"]):
            self.refuses(self.run_in(*command, ranks=2), 4, "text.h5")

    # The other commands.

    def test_embed(self):
        self.train("run", {"train.steps": 2})
        self.write("texts.txt", "one\ntwo\n")

        def refuses(code, text, *args):
            self.refuses(self.run_in("embed", "run", *args, ranks=2), code, text)

        refuses(2, "--input is missing", "--output", "x.npy")
        refuses(4, "absent.txt", "--input", "absent.txt", "--output", "x.npy")
        refuses(2, "ending with", "--input", "texts.txt", "--output", "x.txt")
        refuses(4, "absent/x.npy", "--input", "texts.txt", "--output", "absent/x.npy")
        self.write("empty.txt", "")
        refuses(2, "holds no texts", "--input", "empty.txt", "--output", "x.npy")
        self.assertFalse(os.path.exists(self.path("x.npy")))
        self.assertFalse(os.path.exists(self.path("x.txt")))
        self.assertEqual(support.temporary_files(self.folder), [])

    def test_eval_data(self):
        self.train("run", {"train.steps": 2})
        self.refuses(self.run_in("eval", "run", "--data", "absent.tsv", ranks=2), 4, "absent.tsv")
        self.write("bad.tsv", "no tab\n")
        self.refuses(self.run_in("eval", "run", "--data", "bad.tsv", ranks=2), 2, "bad.tsv")

    # The disk.

    def test_file_too_large(self):
        """A limit on the size of files stands for a quota: the checkpoint before stays."""
        values = {"parallel.threads": 1, "model.max_length": 50000, "train.schedule_steps": 8}
        self.train("run", values | {"train.steps": 2})
        size = os.path.getsize(support.checkpoint(self.path("run"), 2))
        self.assertGreater(size, 10_000_000)
        limit = (size // 2, size // 2)
        outcome = self.run_in(*self.train_args("run", values | {"train.steps": 4}), ranks=0,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
        self.refuses(outcome, 4, "step-00000004.h5", "File too large")
        self.assertEqual(support.checkpoints(self.path("run")), ["step-00000002.h5"])
        self.assertEqual(support.temporary_files(self.folder), [])
        self.train("run", values | {"train.steps": 4}, ranks=2)
        self.assertEqual([line["step"] for line in support.metrics(self.path("run"))], [1, 2, 3, 4])


class FullDisk(support.EndToEnd):
    """On a file system of a few megabytes; only root may mount one."""

    def setUp(self):
        super().setUp()
        self.disk = self.path("disk")
        os.mkdir(self.disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", self.disk], check=True)
        self.addCleanup(subprocess.run, ["umount", self.disk], check=True)

    def test_checkpoint(self):
        self.check_checkpoint("off")

    def test_checkpoint_beside_training(self):
        self.check_checkpoint("on")

    def check_checkpoint(self, beside):
        values = {"checkpoint.async": beside, "parallel.threads": 1, "model.hidden": 64, "model.max_length": 1200,
                  "train.schedule_steps": 8, "checkpoint.keep": 5}  # 0.8 MB each
        self.train("disk/run", values | {"train.steps": 2}, ranks=2)
        outcome = self.run_in(*self.train_args("disk/run", values | {"train.steps": 6,
                                                                     "checkpoint.every_steps": 2}), ranks=2)
        self.refuses(outcome, 4, "No space left on device")
        self.assertIn("checkpoint.keep", outcome.err)
        steps = support.checkpoints(self.path("disk/run"))
        self.assertEqual(steps, ["step-00000002.h5"])
        self.assertEqual(support.temporary_files(self.disk), [])
        # With room again the run goes on from what it has.
        subprocess.run(["mount", "-o", "remount,size=8m", self.disk], check=True)
        again = self.train("disk/run", values | {"train.steps": 6}, ranks=2)
        self.assertRegex(again.err, r"resumed from .* at step 2\b")
        self.assertEqual(len(support.metrics(self.path("disk/run"))), 6)

    def test_embeddings(self):
        self.train("run", {"train.steps": 2, "parallel.threads": 1})
        with open(self.path("texts.txt"), "w", encoding="utf-8") as out:
            for query, _ in support.pairs(20000):
                out.write(query + "\n")
        for name in ("x.npy", "x.h5"):
            outcome = self.run_in("embed", "run", "--input", "texts.txt", "--output", f"disk/{name}",
                                  ranks=2)
            self.refuses(outcome, 4, "No space left on device")
            self.assertEqual(os.listdir(self.disk), [])


def load_tests(loader, tests, pattern):
    """Without the right to mount, the limit on file sizes stands alone."""
    del tests, pattern
    cases = [Errors]
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if os.geteuid() == 0 and probe.returncode == 0:
        cases.append(FullDisk)
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)


if __name__ == "__main__":
    support.main()
