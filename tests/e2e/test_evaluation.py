"""`amur eval` and `amur embed`: figures against plain Python, malformed input, resumed jobs."""
import gzip
import json
import math
import os
import random
import re
import shutil
import struct
import subprocess
import tempfile

import support
from test_commands import read_npy

DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "evaluation.md")
WINDOW = 16384


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


class WithModel(support.EndToEnd):
    """One small model for all tests of a class."""
    values = {"train.steps": 60, "parallel.threads": 1}

    @classmethod
    def setUpClass(cls):
        cls.trained = tempfile.mkdtemp(prefix="amur_e2e_")
        cls.addClassCleanup(shutil.rmtree, cls.trained, ignore_errors=True)
        support.write_tsv(os.path.join(cls.trained, "pairs.tsv"), cls.samples)
        support.write_tsv(os.path.join(cls.trained, "eval.tsv"), cls.held_out, seed=2)
        with open(os.path.join(cls.trained, "small.yaml"), "w", encoding="utf-8") as out:
            out.write(support.SMALL)
        outcome = support.run("train", "small.yaml", "--run-dir", "run", *support.settings(cls.values),
                              ranks=2, cwd=cls.trained)
        assert outcome.code == 0, outcome

    def setUp(self):
        super().setUp()
        os.symlink(os.path.join(self.trained, "run"), self.path("run"))

    def write_lines(self, name, lines, opener=open):
        with opener(self.path(name), "wt", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in lines)
        return name

    def write_json_lines(self, name, objects, opener=open):
        return self.write_lines(name, map(json.dumps, objects), opener)

    def vectors(self, texts, tower):
        self.write_lines("vectors.txt", texts)
        outcome = self.run_in("embed", "run", "--input", "vectors.txt", "--output", "vectors.npy",
                              "--tower", tower)
        self.assertEqual(outcome.code, 0, outcome)
        return read_npy(self.path("vectors.npy"))

    def evaluate(self, task, data, *more, ranks=1):
        outcome = self.run_in("eval", "run", "--task", task, "--data", data, "--json", *more, ranks=ranks)
        self.assertEqual(outcome.code, 0, outcome)
        result = outcome.json()
        del result["seconds"]
        return result


class Evaluation(WithModel):
    def on_all_grids(self, task, data, *more):
        first, *others = (self.evaluate(task, data, *more, ranks=ranks) for ranks in (1, 2, 3))
        for other in others:
            self.assertEqual(other, first)
        for name, (low, high) in first["intervals"].items():
            self.assertLessEqual(low, first[name] + 1e-12)
            self.assertLessEqual(first[name], high + 1e-12)
        return first

    def beir(self, shift=0):
        """A folder, its relevance by query, its texts."""
        shutil.rmtree(self.path("beir"), ignore_errors=True)
        os.makedirs(self.path("beir", "qrels"))
        pairs = support.pairs(150, seed=4)
        documents = {f"d{i}": document for i, (_, document) in enumerate(pairs)}
        queries = {f"q{i}": query for i, (query, _) in enumerate(pairs[:70])}
        queries["d9"] = pairs[9][0] + " " + pairs[80][0]  # the id of a document that is not judged
        self.write_json_lines("beir/corpus.jsonl.gz", (
            {"_id": name, "title": text.split(" ")[0], "text": " ".join(text.split(" ")[1:])}
            for name, text in documents.items()), gzip.open)
        self.write_json_lines("beir/queries.jsonl", (
            {"_id": name, "text": text} for name, text in queries.items()))
        qrels = {f"q{i}": {f"d{(i + shift) % 150}": 2, f"d{(i + shift + 1) % 150}": 0,
                           f"d{(i + shift + 40) % 150}": 1} for i in range(60)}
        qrels["d9"] = {"d80": 1}
        qrels["q65"] = {"d65": 0}  # does not count
        self.write_lines("beir/qrels/test.tsv", ["query-id\tcorpus-id\tscore"] + [
            f"{q}\t{d}\t{relevance}" for q, judged in qrels.items() for d, relevance in judged.items()])
        return queries, documents, qrels

    def test_retrieval(self):
        queries, documents, qrels = self.beir()
        result = self.on_all_grids("retrieval", "beir")
        self.assertEqual((result["queries"], result["documents"]), (61, 150))

        rows = dict(zip(documents, self.vectors(documents.values(), "document"), strict=True))
        asked = dict(zip(queries, self.vectors(queries.values(), "query"), strict=True))
        sums = dict.fromkeys(result["intervals"], 0.0)
        for query, judged in qrels.items():
            relevant = {d for d, relevance in judged.items() if relevance > 0}
            if not relevant:
                continue
            order = sorted((d for d in rows if d != query),
                           key=lambda d, q=query: (dot(asked[q], rows[d]), d), reverse=True)
            found = [judged.get(d, 0) for d in order]
            places = [i for i, r in enumerate(found, 1) if r > 0]
            gain = sum(r / math.log2(1 + i) for i, r in enumerate(found[:10], 1))
            best = sum(r / math.log2(1 + i) for i, r in enumerate(sorted(judged.values())[::-1], 1))
            sums["ndcg@10"] += gain / best
            sums["mrr@10"] += 1 / places[0] if places[0] <= 10 else 0
            for k in (1, 5, 10, 100):
                hits = sum(place <= k for place in places)
                for name, value in (("accuracy", hits > 0), ("precision", hits / k),
                                    ("recall", hits / len(relevant)),
                                    ("map", sum(i / place for i, place in enumerate(places, 1)
                                                if place <= k) / len(relevant))):
                    if f"{name}@{k}" in sums:
                        sums[f"{name}@{k}"] += value
        for name, value in sums.items():
            self.assertAlmostEqual(result[name], value / 61, places=9, msg=name)
        self.assertGreater(result["ndcg@10"], 0.3)

        # Other documents are no answers.
        self.beir(shift=20)
        self.assertLess(self.evaluate("retrieval", "beir")["ndcg@10"], 0.5 * result["ndcg@10"])
        text = self.run_in("eval", "run", "--task", "retrieval", "--data", "beir", ranks=2)
        self.assertEqual(text.out.count("ndcg@10"), 1, text)

    def test_sts(self):
        draw = random.Random(5)
        pairs = []
        for query, document in support.pairs(120, seed=6):
            other = draw.choice((document, support.pairs(1, draw.randrange(1000))[0][1]))
            pairs.append((query, other, 5 if other == document else draw.randrange(3)))
        lines = [f"{a}\t{b}\t{score}" for a, b, score in pairs]
        self.write_lines("sts.tsv", ["one\tother\tscore", *lines])
        result = self.on_all_grids("sts", "sts.tsv")
        self.assertEqual(result["pairs"], 120)

        left = self.vectors([a for a, _, _ in pairs], "query")
        right = self.vectors([b for _, b, _ in pairs], "query")
        cosines = [dot(a, b) for a, b in zip(left, right, strict=True)]
        scores = [float(score) for _, _, score in pairs]

        def pearson(x, y):
            x = [v - math.fsum(x) / len(x) for v in x]
            y = [v - math.fsum(y) / len(y) for v in y]
            return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))

        def ranks(x):
            return [sum(w < v for w in x) + (sum(w == v for w in x) + 1) / 2 for v in x]
        self.assertAlmostEqual(result["pearson"], pearson(cosines, scores), places=5)
        self.assertAlmostEqual(result["spearman"], pearson(ranks(cosines), ranks(scores)), places=3)
        self.assertGreater(result["spearman"], 0.3)
        # The scores of others say nothing.
        draw.shuffle(scores)
        self.write_lines("wrong.tsv", (f"{a}\t{b}\t{score}" for (a, b, _), score in
                                       zip(pairs, scores, strict=True)))
        self.assertLess(abs(self.evaluate("sts", "wrong.tsv")["spearman"]), 0.25)

    def test_classification(self):
        draw = random.Random(7)
        texts = []
        while len(texts) < 600:  # which third of the words a text takes
            third = draw.choice((0, 0, 1, 2))
            words = support.pairs(1, draw.randrange(10 ** 6), words=40 * (third + 1))[0][0].split(" ")
            late = [w for w, _ in support.pairs(200, third, words=40 * (third + 1), longest=1)]
            texts.append((" ".join(words + draw.choices(late, k=2)), f"third {third}"))
        lines = [f"{text}\t{label}" for text, label in texts]
        self.write_lines("labels.tsv", ["text\tlabel", *lines])
        result = self.on_all_grids("classification", "labels.tsv")
        self.assertEqual((result["classes"], result["train"] + result["test"]), (3, 600))
        self.assertTrue(80 < result["test"] < 160, result)
        self.assertGreater(result["accuracy"], result["majority"] + 0.1)

        self.write_lines("train.tsv", lines[:480])
        self.write_lines("test.tsv.gz", lines[480:], gzip.open)
        apart = self.evaluate("classification", "train.tsv", "--test", "test.tsv.gz")
        self.assertEqual((apart["train"], apart["test"]), (480, 120))
        counted = [label for _, label in texts[480:]].count("third 0")
        self.assertAlmostEqual(apart["majority"], counted / 120)
        # Labels drawn by lot cannot be learned.
        labels = [label for _, label in texts]
        draw.shuffle(labels)
        self.write_lines("lot.tsv", (f"{text}\t{label}" for (text, _), label in
                                     zip(texts, labels, strict=True)))
        self.assertLess(self.evaluate("classification", "lot.tsv")["accuracy"], 0.6)

    def test_pairs_have_intervals(self):
        result = self.evaluate("pairs", os.path.join(self.trained, "eval.tsv"))
        for direction in ("query_to_document", "document_to_query"):
            for name, (low, high) in result["intervals"][direction].items():
                self.assertTrue(low - 1e-12 <= result[direction][name] <= high + 1e-12, name)
            low, high = result["intervals"][direction]["mrr"]
            self.assertTrue(0.003 < high - low < 0.1, result)

    def test_malformed(self):
        def refuses(code, texts, task, data, *more):
            self.refuses(self.run_in("eval", "run", "--task", task, "--data", data, *more, ranks=2),
                         code, *texts)

        refuses(4, ["absent.tsv"], "sts", "absent.tsv")
        self.write_lines("sts.tsv", ["a\tb\t1", "a\tb", "", "a\tb\tmuch"])
        refuses(2, ["sts.tsv:2: 2 columns", "sts.tsv:4: the score 'much'"], "sts", "sts.tsv")
        self.write_lines("sts.tsv", ["a\tb\t1"])
        refuses(2, ["1 pairs"], "sts", "sts.tsv")
        self.write_lines("sts.tsv", ["a\tb\t1", "b\tc\t1.0"])
        refuses(2, ["all scores are 1"], "sts", "sts.tsv")

        self.write_lines("labels.tsv", ["a\tx", "b"])
        refuses(2, ["labels.tsv:2: 1 columns"], "classification", "labels.tsv")
        self.write_lines("labels.tsv", ["a\tx", "b\tx"])
        self.write_lines("test.tsv", ["a\tx", "b\ty"])
        refuses(2, ["test.tsv:2: the label 'y'"], "classification", "labels.tsv", "--test", "test.tsv")
        refuses(2, ["--test belongs to --task classification"], "sts", "sts.tsv", "--test", "test.tsv")

        self.beir()
        for name, lines, text in (
                ("qrels/test.tsv", ["query\tdoc\tscore", "q1\td1\t1", "q2\tnone\t1"],
                 "test.tsv:3: the document 'none' is not in beir/corpus.jsonl.gz"),
                ("qrels/test.tsv", ["nobody\td1\t1"], "test.tsv:1: the query 'nobody'"),
                ("qrels/test.tsv", ["q1\td1\t1", "q1\td1\t2"], "test.tsv:2: query 'q1' and document 'd1'"),
                ("qrels/test.tsv", ["q1 0 d1 1"], "test.tsv:1: 1 columns"),
                ("qrels/test.tsv", ["q\td\ts", "q1\td1\tvery"], "test.tsv:2: the relevance 'very'"),
                ("qrels/test.tsv", ["q1\td1\t0"], "names no relevant document"),
                ("qrels/test.tsv", [], "holds no judgements"),
                ("queries.jsonl", ['{"_id": "q1", "text": "a"}', '{"_id": "q1", "text": "b"}'],
                 "queries.jsonl:2: the id 'q1' is there a second time"),
                ("queries.jsonl", ['{"_id": "q1"}', "{"], "queries.jsonl:1: no \"text\""),
                ("queries.jsonl", [], "queries.jsonl is empty")):
            self.beir()
            self.write_lines(f"beir/{name}", lines)
            refuses(2, [text], "retrieval", "beir")
        self.beir()
        refuses(4, ["beir/qrels/dev.tsv"], "retrieval", "beir", "--split", "dev")


class Embedding(WithModel):
    values = {"train.steps": 2, "parallel.threads": 1, "model.layers": 0}

    def embed(self, *args, code=0, ranks=1, **options):
        outcome = self.run_in("embed", "run", *args, "--json", ranks=ranks, **options)
        self.assertEqual(outcome.code, code, outcome)
        return outcome

    def lines(self, count):
        return [query for query, _ in support.pairs(count, seed=3)]

    def test_json_lines(self):
        texts = [*self.lines(40), "", 'say "ä"\\', "tab\tin it"]
        self.write_lines("texts.txt.gz", texts, gzip.open)
        for name in ("rows.npy", "rows.jsonl"):
            self.embed("--input", "texts.txt.gz", "--output", name, "--prefix", "of ", ranks=2)
        with open(self.path("rows.jsonl"), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        self.assertEqual([row["text"] for row in rows], texts)
        self.assertEqual([struct.unpack("32f", struct.pack("32f", *row["embedding"])) for row in rows],
                         read_npy(self.path("rows.npy")))
        # What is no text is shown as such.
        with open(self.path("bad.txt"), "wb") as out:
            out.write(b"\xef\xbb\xbfab\xff\r\n")
        self.embed("--input", "bad.txt", "--output", "bad.jsonl")
        with open(self.path("bad.jsonl"), encoding="utf-8") as file:
            self.assertEqual(json.loads(file.read())["text"], "ab\ufffd")

    def test_answers_while_the_input_goes_on(self):
        job = self.start_in("embed", "run", "--input", "-", "--output", "-", ranks=2,
                            stdin=subprocess.PIPE)
        for text in ("one", "another", ""):
            job.stdin.write(text + "\n")
            job.stdin.flush()
            answer = json.loads(job.stdout.readline())
            self.assertEqual((answer["text"], len(answer["embedding"])), (text, 32))
        job.stdin.close()
        job.stdin = None
        self.assertEqual(support.finish(job).code, 0)
        self.refuses(self.run_in("embed", "run", "--input", "x", "--output", "-", "--json"), 2,
                     "both want standard output")

    def interrupt(self, name, ranks, *more):
        """Kills a job once its first window is done."""
        job = self.start_in("embed", "run", "--input", "texts.txt", "--output", name, *more, ranks=ranks)
        support.wait_until(lambda: os.path.exists(self.path(name + ".part.json")), limit=60, pause=0.001)
        for pid in support.ranks_of(job):
            support.kill(pid)
        support.remove(job)
        self.assertFalse(os.path.exists(self.path(name)))

    def test_resume(self):
        texts = self.lines(5 * WINDOW // 2)
        self.write_lines("texts.txt", texts)
        whole = {}
        for ending in ("npy", "jsonl", "h5"):
            self.embed("--input", "texts.txt", "--output", f"whole.{ending}", ranks=1)
            with open(self.path(f"whole.{ending}"), "rb") as file:
                whole[ending] = file.read()
            name = f"parts.{ending}"
            self.interrupt(name, 3)
            # What came after the last complete window is thrown away.
            with open(self.path(name + ".part"), "ab") as file:
                file.write(b"rubbish")
            result = self.embed("--input", "texts.txt", "--output", name, ranks=2).json()
            self.assertIn(result["resumed_texts"], (WINDOW, 2 * WINDOW))
            self.assertEqual(result["texts"], len(texts))
            with open(self.path(name), "rb") as file:
                self.assertTrue(file.read() == whole[ending], name)
        self.assertEqual([name for name in os.listdir(self.folder) if ".part" in name or ".tmp" in name], [])

        # Something else is not mixed in.
        os.remove(self.path("parts.npy"))
        self.interrupt("parts.npy", 2)
        self.write_lines("texts.txt", ["changed", *texts[1:]])
        args = ("embed", "run", "--input", "texts.txt", "--output", "parts.npy")
        self.refuses(self.run_in(*args, ranks=2), 2, "are not those that the interrupted job")
        self.write_lines("texts.txt", texts[:100])
        self.refuses(self.run_in(*args, ranks=2), 2, "are not those that the interrupted job")
        self.write_lines("texts.txt", texts)
        self.refuses(self.run_in(*args, "--prefix", "the ", ranks=2), 2, "another prefix")
        self.refuses(self.run_in(*args, "--tower", "document", ranks=2), 2, "another tower")
        self.train("other", self.values | {"train.seed": 4})
        self.refuses(self.run_in("embed", "other", *args[2:], ranks=2), 2, "another model")
        # And with it the work goes on, or begins again.
        anew = self.embed("--input", "texts.txt", "--output", "parts.npy", "--resume", "never").json()
        self.assertEqual(anew["resumed_texts"], 0)
        with open(self.path("parts.npy"), "rb") as file:
            self.assertTrue(file.read() == whole["npy"])

    def test_memory_does_not_grow(self):
        peaks = []
        for windows in (2, 8):
            self.write_lines("texts.txt", self.lines(2 * WINDOW) * (windows // 2))
            with open(self.path("texts.txt"), encoding="utf-8") as feed:
                job = self.start_in("embed", "run", "--input", "-", "--output", "rows.npy", ranks=0,
                                    stdin=feed)
            _, status, usage = os.wait4(job.pid, 0)
            job.returncode = os.waitstatus_to_exitcode(status)
            self.assertEqual(job.returncode, 0)
            peaks.append(usage.ru_maxrss * 1024)
        # All rows of the six windows more would take 12 MB, their texts 3 MB.
        self.assertLess(peaks[1] - peaks[0], 5e6, peaks)


class Document(WithModel):
    def test_commands(self):
        with open(DOCUMENT, encoding="utf-8") as document:
            blocks = re.findall(r"^```sh\n(.*?)^```$", document.read(), re.M | re.S)
        self.assertEqual(len(blocks), 2)
        os.mkdir(self.path("runs"))
        os.symlink(os.path.join(self.trained, "run"), self.path("runs", "mine"))
        # `amur eval` without data looks where the run did.
        for name in ("pairs.tsv", "eval.tsv"):
            shutil.copy(os.path.join(self.trained, name), self.path(name))
        pairs = support.pairs(300, seed=9)
        support.write_tsv(self.path("more.tsv"), 20)
        self.write_lines("sts.tsv", (f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(pairs)))
        for name, some in (("intents", pairs), ("held-out", pairs[:50])):
            self.write_lines(f"{name}.tsv", (f"{a}\t{len(a) // 10 % 2}" for a, _ in some))
        os.makedirs(self.path("nfcorpus", "qrels"))
        for name, side in (("queries", 0), ("corpus", 1)):
            self.write_json_lines(f"nfcorpus/{name}.jsonl", (
                {"_id": str(i), "text": pair[side]} for i, pair in enumerate(pairs)))
        self.write_lines("nfcorpus/qrels/test.tsv", (f"{i}\t{i}\t1" for i in range(300)))
        self.write_lines("texts.txt", self.lines())
        self.write_lines("texts.txt.gz", self.lines(), gzip.open)
        environment = os.environ | {
            "PATH": f"{os.path.dirname(support.PROGRAM)}:{os.environ['PATH']}"}
        for block in blocks:
            done = subprocess.run(["bash", "-eo", "pipefail", "-c", block], cwd=self.folder, text=True,
                                  env=environment, capture_output=True, check=False,
                                  timeout=120 * support.TIME_FACTOR)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn("error:", done.stderr)
        with open(self.path("sts.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["pairs"], 300)
        self.assertEqual(len(read_npy(self.path("texts.npy"))), 100)
        with gzip.open(self.path("texts.jsonl.gz"), "rt", encoding="utf-8") as file:
            self.assertEqual([json.loads(line)["text"] for line in file], self.lines())

    def lines(self):
        return [query for query, _ in support.pairs(100, seed=3)]


if __name__ == "__main__":
    support.main()
