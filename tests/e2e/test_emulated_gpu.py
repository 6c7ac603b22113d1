"""Training with --device cuda, over GPUs that the CPU emulates (tests/support/cuda_emulation).

AMUR_PROGRAM is a copy of the program with the emulated back end beside it. Nothing of it says
anything of a GPU's speed, rounding or driver.
"""
import json
import os
import unittest

import support
from support import columns, checkpoint, datasets

LOOSE = {"train.batch_size": 24, "train.steps": 3, "train.chunk_tokens": 96,
         "train.precision": "fp64", "runtime.tune": "false"}


class Emulated(support.EndToEnd):
    samples, held_out = 160, 20

    def numbers(self, run_dir, device, values=None, *more, ranks=1):
        """loss, scale, ... of each step."""
        self.train(run_dir, {**LOOSE, **(values or {})}, "--device", device, *more, ranks=ranks,
                   limit=120)
        return columns(self.path(run_dir))

    def close(self, ours, theirs, bound):
        self.assertEqual(len(ours), len(theirs))
        for a, b in zip(ours, theirs):
            for x, y in zip(a, b):
                self.assertLessEqual(abs(x - y), bound * max(1e-3, abs(y)), f"{a} and {b}")

    def compare(self, name, values, bound):
        self.close(self.numbers(f"{name}-gpu", "cuda", values),
                   self.numbers(f"{name}-cpu", "cpu", values), bound)


class Training(Emulated):
    def test_one_rank_and_resume(self):
        on_cpu = self.numbers("cpu", "cpu")
        on_gpu = self.numbers("gpu", "cuda")
        self.close(on_gpu, on_cpu, 1e-9)
        for first, then in (("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")):
            run_dir = f"{first}-{then}"
            self.numbers(run_dir, first, {"train.steps": 2, "train.schedule_steps": 3})
            resumed = self.numbers(run_dir, then, {"train.schedule_steps": 3})
            self.close(resumed, on_cpu, 1e-9)
            if first == then:  # bit for bit
                self.assertEqual(resumed, on_gpu)
                ours, whole = (datasets(checkpoint(self.path(d), 3)) for d in (run_dir, "gpu"))
                self.assertEqual(ours.keys(), whole.keys())
                for name, value in whole.items():
                    if name.startswith(("/model/", "/optimizer/")):
                        self.assertEqual(ours[name].tobytes(), value.tobytes(), name)

    def test_two_ranks(self):
        """Whose tensors travel by pinned memory and MPI, or by what passes for NCCL."""
        alone = self.numbers("alone", "cpu")
        for comm in ("mpi", "nccl"):
            for tp in (1, 2):
                found = self.numbers(f"{comm}-{tp}", "cuda", {"parallel.tp": tp}, "--comm", comm,
                                     ranks=2)
                self.close(found, alone, 1e-9)

    def test_too_little_memory(self):
        """A GPU of 1 GiB: the message says which chunk would fit, measured or not."""
        values = {**LOOSE, "model.ffn": 65536, "train.batch_size": 120, "train.chunk_tokens": 4096}
        for budget in ("auto", 0):
            outcome = self.run_in(*self.train_args(f"budget-{budget}", {
                **values, "train.activation_budget": budget}, "--device", "cuda"), limit=120)
            self.refuses(outcome, 2, "GiB were asked for, but only", "of 1.000 GiB are free",
                         "the largest train.chunk_tokens that would fit is about ")

    def test_half_precision(self):
        self.compare("bf16", {"train.precision": "bf16"}, 0.1)

    def test_measured_algorithms(self):
        """Chosen once: a resume computes by the choices of its checkpoint."""
        values = LOOSE | {"train.batch_size": 8, "train.chunk_tokens": 8, "train.steps": 1,
                          "train.schedule_steps": 2, "train.precision": "fp32",
                          "runtime.tune": "true"}
        first = self.train("tuned", values, "--device", "cuda", limit=120)
        self.assertRegex(first.err, r"\d+ products were measured in")
        with open(self.path("tuned", "choices.json"), encoding="utf-8") as file:
            chosen = json.load(file)["choices"]
        products = [name for name in chosen if name.startswith("product/")]
        self.assertGreater(len(products), 15)
        self.assertTrue(any("/nt 8 x 8 x " in name for name in products), products)  # logits
        again = self.train("tuned", values | {"train.steps": 2}, "--device", "cuda", limit=120)
        self.assertNotIn("were measured", again.err)
        self.assertNotIn("bits may differ", again.err)
        with open(self.path("tuned", "choices.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["choices"], chosen)


class More(Emulated):
    def test_three_ranks_share_two_gpus(self):
        values = {"model.towers": "separate", "model.projection": 16,
                  "optimizer.embedding_rows": "dense"}
        self.close(self.numbers("gpu", "cuda", values, "--comm", "mpi", ranks=3),
                   self.numbers("cpu", "cpu", values), 1e-9)

    def test_grids_over_nccl(self):
        """Of what passes for NCCL: sums beside the backward, groups that are split from others."""
        alone = self.numbers("alone", "cpu")
        for values in ({"parallel.tp": 2}, {"parallel.tp": 1, "train.activation_budget": 0}):
            name = f"tp{values['parallel.tp']}"
            self.close(self.numbers(name, "cuda", values, "--comm", "nccl", ranks=4), alone, 1e-9)
        half = {"train.precision": "bf16", "model.towers": "separate"}
        by_nccl, by_mpi = (self.numbers(f"half-{comm}", "cuda", half, "--comm", comm, ranks=2)
                           for comm in ("nccl", "mpi"))
        self.assertEqual(by_nccl, by_mpi)  # sums of two numbers have one order

    def test_other_commands(self):
        self.numbers("run", "cpu", {"train.precision": "fp32"})
        self.write("texts.txt", "\n".join(query for query, _ in support.pairs(40, seed=5)))
        for command in (["eval", "run", "--json"],
                        ["embed", "run", "--input", "texts.txt", "--output", "-"],
                        ["verify-grad", "small.yaml", "--samples", "24", "--json"]):
            ours, theirs = (self.run_in(*command, "--device", device, limit=120)
                            for device in ("cuda", "cpu"))
            self.assertEqual((ours.code, theirs.code), (0, 0), f"{ours}{theirs}")
            if command[0] == "embed":
                rows = [[json.loads(line)["embedding"] for line in outcome.out.splitlines()]
                        for outcome in (ours, theirs)]
                self.assertEqual(len(rows[0]), 40)
                worst = max(abs(a - b) for x, y in zip(*rows) for a, b in zip(x, y))
                self.assertLess(worst, 1e-5)
            elif command[0] == "eval":
                for side in ("query_to_document", "document_to_query"):
                    for name, value in ours.json()[side].items():
                        self.assertEqual(value, theirs.json()[side][name], name)
            else:
                self.assertLessEqual(ours.json()["max_relative_error"], 1e-5)

    def test_single_precision(self):
        self.compare("fp32", {"train.precision": "fp32"}, 1e-3)
        self.compare("loss", {"train.precision": "fp32", "loss.precision": "bf16"}, 2e-3)

    def test_other_optimizers_and_losses(self):
        self.compare("adamw", {"optimizer.kind": "adamw", "loss.kind": "siglip",
                               "model.activation": "swiglu", "model.norm": "rms",
                               "model.position": "rotary"}, 1e-9)
        self.compare("lion", {"optimizer.kind": "lion", "model.pooling": "cls",
                              "model.position": "sinusoidal", "train.activation_budget": 0}, 1e-9)

    @unittest.skipUnless("AMUR_CUDNN_STAND_IN" in os.environ, "built without cuDNN's headers")
    def test_attention_by_cudnn(self):
        """Of a stand-in: as close as rounding allows to our own kernels, and not the same bits."""
        values = LOOSE | {"train.precision": "bf16", "model.dropout": 0}
        loader = f"{os.environ['LD_LIBRARY_PATH']}:{os.environ['AMUR_CUDNN_STAND_IN']}"

        def losses(run_dir, engine, **more):
            done = self.train(run_dir, values | {"runtime.attention": engine, **more}, "--device",
                              "cuda", limit=120, env=dict(os.environ, LD_LIBRARY_PATH=loader))
            return columns(self.path(run_dir)), done

        ours, _ = losses("own", "own")
        theirs, _ = losses("cudnn", "cudnn")
        self.close(theirs, ours, 0.05)
        self.assertNotEqual(theirs, ours)
        _, timed = losses("auto", "auto", **{"train.steps": 1, "runtime.tune": "true"})
        self.assertRegex(timed.err, r"attention was timed in .*: of 2 kinds \d by cuDNN 9\.")
        with open(self.path("auto", "choices.json"), encoding="utf-8") as file:
            kinds = [name for name in json.load(file)["choices"] if name.startswith("attention/")]
        self.assertEqual(len(kinds), 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
