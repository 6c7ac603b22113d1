"""Every command through its options, alone and under mpirun."""
import json
import math
import os
import struct

import support

SCORES = {"recall@1", "recall@5", "recall@10", "mrr", "ndcg@10", "queries", "documents"}
FIELDS = {"step", "loss", "scale", "learning_rate", "pairs_per_second", "tokens_per_second", "chunks",
          "recomputed_chunks", "embedding_gradient_norm", "momentum_change", "peak_resident_bytes",
          "peak_gpu_bytes", "seconds_data", "seconds_pass1", "seconds_loss", "seconds_pass2",
          "seconds_sync", "seconds_update", "model_flops", "cpu_seconds"}


def read_npy(path):
    """Shape, type and rows of a .npy file, read by its published format."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0 and data[9 + length:10 + length] == b"\n"
    header = eval(data[10:10 + length], {"__builtins__": {}})  # a literal, by the format
    assert header["fortran_order"] is False
    rows, width = header["shape"]
    letter = {"<f4": "f", "<f8": "d"}[header["descr"]]
    values = struct.unpack(f"<{rows * width}{letter}", data[10 + length:])
    return [values[r * width:(r + 1) * width] for r in range(rows)]


class Commands(support.EndToEnd):
    def setUp(self):
        super().setUp()
        self.result = self.train("run", {"train.steps": 60, "parallel.threads": 1}, "--json", ranks=2)
        self.file = support.checkpoint("run", 60)

    def lines(self, count, seed=5):
        return [query for query, _ in support.pairs(count, seed)]

    def test_train(self):
        result = self.result.json()
        self.assertEqual((result["steps"], result["first_step"], result["interrupted"]),
                         (60, 0, False))
        self.assertEqual(result["checkpoint"], self.file)
        lines = support.metrics(self.path("run"))
        self.assertEqual(len(lines), 60)
        for line in lines:
            self.assertLessEqual(FIELDS, line.keys())
            self.assertTrue(math.isfinite(line["loss"]))
        self.assertEqual(result["loss"], lines[-1]["loss"])
        self.assertEqual(os.readlink(self.path("run", "checkpoints", "latest")), "step-00000060.h5")
        self.assertIn("step 60/60", self.result.err)
        with open(self.path("run", "log.txt"), encoding="utf-8") as log:
            self.assertIn("step 60/60", log.read())
        # The resolved configuration is one that runs, and is itself resolved.
        self.train("again", {"train.steps": 2}, config="run/config.yaml")

    def test_eval(self):
        documents = []
        for ranks in (0, 1, 2, 3):
            result = self.run_in("eval", "run", "--json", ranks=ranks)
            self.assertEqual(result.code, 0, result)
            documents.append(result.json())
            del documents[-1]["seconds"]
        for other in documents[1:]:
            self.assertEqual(other, documents[0])
        both = documents[0]
        for direction in ("query_to_document", "document_to_query"):
            self.assertEqual(both[direction].keys(), SCORES)
            self.assertGreater(both[direction]["queries"], 150)
        trained = self.result.json()["evaluation"]
        self.assertEqual(both["query_to_document"], trained["query_to_document"])
        self.assertGreater(both["query_to_document"]["recall@10"], 0.3)

        # Another file; one that was not learned cannot be answered.
        support.write_tsv(self.path("more.tsv"), 50, seed=8)
        more = self.run_in("eval", self.file, "--data", "more.tsv", "--json").json()
        self.assertLessEqual(more["query_to_document"]["queries"], 50)
        self.assertGreater(more["query_to_document"]["queries"], 40)
        shuffled = support.pairs(50, seed=8)
        with open(self.path("wrong.jsonl"), "w", encoding="utf-8") as out:
            for (query, _), (_, document) in zip(shuffled, shuffled[7:] + shuffled[:7], strict=True):
                out.write(json.dumps({"query": query, "pos": [document]}) + "\n")
        wrong = self.run_in("eval", self.file, "--data", "wrong.jsonl", "--json").json()
        self.assertLess(wrong["query_to_document"]["mrr"], 0.5 * more["query_to_document"]["mrr"])

        text = self.run_in("eval", "run", ranks=2)
        self.assertEqual(text.out.count("query -> document"), 1)

    def test_embed(self):
        texts = self.lines(300)
        self.write("texts.txt", "".join(text + "\n" for text in texts))
        files = {}
        for ranks in (1, 3):
            name = f"on{ranks}.npy"
            result = self.run_in("embed", "run", "--input", "texts.txt", "--output", name, "--json",
                                 ranks=ranks)
            self.assertEqual(result.code, 0, result)
            self.assertEqual(result.json()["texts"], 300)
            with open(self.path(name), "rb") as file:
                files[ranks] = file.read()
        self.assertEqual(files[1], files[3])
        rows = read_npy(self.path("on1.npy"))
        self.assertEqual((len(rows), len(rows[0])), (300, 32))
        for row in rows:
            self.assertAlmostEqual(math.fsum(v * v for v in row), 1, places=5)
        # Input order: reversed input, reversed rows.
        self.write("reversed.txt", "".join(text + "\n" for text in reversed(texts)))
        with open(self.path("reversed.txt"), encoding="utf-8") as feed:
            result = self.run_in("embed", "run", "--input", "-", "--output", "reversed.npy", ranks=2,
                                 feed=feed)
        self.assertEqual(result.code, 0, result)
        for row, other in zip(rows, reversed(read_npy(self.path("reversed.npy"))), strict=True):
            self.assertLess(max(abs(a - b) for a, b in zip(row, other, strict=True)), 1e-5)
        self.assertNotEqual(rows[0], rows[1])
        self.assertEqual(support.temporary_files(self.folder), [])

    def test_embed_hdf5(self):
        import h5py

        self.write("texts.txt", "".join(text + "\n" for text in self.lines(40)))
        for name in ("rows.npy", "rows.h5"):
            result = self.run_in("embed", self.file, "--input", "texts.txt", "--output", name,
                                 "--tower", "document")
            self.assertEqual(result.code, 0, result)
        with h5py.File(self.path("rows.h5"), "r") as file:
            self.assertEqual(list(map(tuple, file["/embeddings"][()])),
                             read_npy(self.path("rows.npy")))

    def test_inspect(self):
        report = self.run_in("inspect", "run", "--json", ranks=0)
        self.assertEqual(report.code, 0, report)
        tensors = {tensor["path"]: tensor for tensor in report.json()["tensors"]}
        table = tensors["/model/encoder.embeddings.tokens"]
        self.assertEqual((table["shape"][1], table["kind"]), (32, "embedding"))
        self.assertIn("/optimizer/tiger/momentum/encoder.embeddings.tokens", tensors)
        text = self.run_in("inspect", "run")
        self.assertIn("encoder.embeddings.tokens", text.out)
        sound = self.run_in("inspect", self.file, "--verify", ranks=0)
        self.assertEqual(sound.code, 0, sound)

        # One bit of the elements of one tensor.
        victim = "/model/encoder.layers.0.feed_forward.down.weight"
        import h5py

        with h5py.File(self.path(self.file), "r") as file:
            offset = file[victim].id.get_offset()
        with open(self.path(self.file), "r+b") as file:
            file.seek(offset + 100)
            byte = file.read(1)[0]
            file.seek(offset + 100)
            file.write(bytes([byte ^ 4]))
        damaged = self.run_in("inspect", self.file, "--verify", ranks=0)
        self.assertEqual(damaged.code, 4, damaged)
        self.assertIn(victim, damaged.out + damaged.err)
        self.assertEqual(self.run_in("inspect", self.file, "--brief", ranks=0).code, 0)
        self.refuses(self.run_in("eval", self.file, ranks=2), 4, victim)
        self.refuses(self.run_in(*self.train_args("new", {"train.steps": 61}),
                                 "--resume", self.file, ranks=2), 4, victim)

    def test_doctor(self):
        report = self.run_in("doctor", "--json", ranks=3).json()
        self.assertEqual(report["ranks"], 3)
        self.assertIn("parallel", report["hdf5"])
        self.assertIn("3", self.run_in("doctor", ranks=3).out)

    def test_help(self):
        top = self.run_in("--help", ranks=0)
        self.assertEqual(top.code, 0)
        for command in ("train", "eval", "embed", "inspect", "verify-grad", "doctor"):
            self.assertIn(f"  {command} ", top.out)
            for ranks in (0, 2):
                shown = self.run_in(command, "--help", ranks=ranks)
                self.assertEqual((shown.code, shown.out.count(f"Usage: amur {command}")), (0, 1))


class VerifyGradient(support.EndToEnd):
    values = {"train.batch_size": 48, "train.chunk_tokens": 96, "train.activation_budget": "50KB",
              "parallel.threads": 1, "model.hidden": 16, "model.ffn": 32, "data.vocab_size": 150}

    def certificate(self, *more, ranks=1, **values):
        return self.run_in("verify-grad", "small.yaml", "--json",
                           *support.settings(self.values | values), *more, ranks=ranks)

    def test_pass(self):
        for ranks in (1, 3):
            outcome = self.certificate(ranks=ranks)
            self.assertEqual(outcome.code, 0, outcome)
            result = outcome.json()
            self.assertTrue(result["pass"])
            self.assertLessEqual(result["max_relative_error"], result["bound"])
            self.assertLessEqual(result["checks"][0]["max_relative_error"], 1e-12)
            self.assertEqual((result["ranks"], result["samples"]), (ranks, 48))
            self.assertGreater(result["chunks"], 3)
            self.assertIn("loss.log_scale", result["tensors"])
            self.assertIn("encoder.embeddings.tokens", result["tensors"])

    def test_siglip(self):
        outcome = self.certificate("--samples", 20, ranks=2,
                                   **{"loss.kind": "siglip", "train.precision": "fp64"})
        self.assertEqual(outcome.code, 0, outcome)
        self.assertEqual(outcome.json()["samples"], 20)
        self.assertIn("loss.bias", outcome.json()["tensors"])

    def test_negative_controls(self):
        for kind in ("naive-accumulation", "mean-of-local-means", "temperature-in-replay"):
            for ranks in (1, 3):
                outcome = self.certificate("--break", kind, ranks=ranks)
                self.assertEqual(outcome.code, 5, f"{kind} on {ranks}: {outcome}")
                self.assertFalse(outcome.json()["pass"])
                self.assertGreater(outcome.json()["checks"][0]["max_relative_error"], 1e-3)
        table = self.run_in("verify-grad", "small.yaml", "--break", "naive-accumulation",
                            *support.settings(self.values))
        self.assertEqual(table.code, 5)
        self.assertEqual(table.out.splitlines()[-1], "FAIL")


if __name__ == "__main__":
    support.main()
