"""Folders that Amur reads and writes, against sentence-transformers, live (see live.py).

AMUR_LIVE_TEXTS sets how many texts test_real_and_nasty_texts embeds. AMUR_LIVE_RUN is a run folder
of the quick start, as a class that there is, to look at in place of a short one.
"""
import json
import os
import random

import live
import numpy as np
import support
from hard_texts import amur_ids, nasty_texts, real_texts
from test_exchange import BERT, FIXTURES, LOCAL, MODERNBERT, STATIC

NASTY = ["a", "The quick brown fox jumps over the lazy dog.", "na\u00efve caf\u00e9 \u00dcBER Stra\u00dfe",
         "\u4e2d\u6587 and \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4", "\U0001f42f\U0001f42f tiger \u200d\ufe0f", "x" * 300,
         "word " * 600, "\x01\x02control\x7f", "1,234.56 (7%) & more!?", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
         "e\u0301 o\u0308 \ufb01ligature", "tabs\tand  blanks"]


def many_texts(count):
    """So many texts, four fifths of them real, and no ends of lines in them; some are not UTF-8."""
    draw = random.Random(3)
    nasty = nasty_texts()
    texts = real_texts(os.environ["AMUR_TOKENIZE_TEXTS"], count // 5)
    broken = [text.encode() for text in texts[::40]]
    for i, text in enumerate(broken):  # one byte of it cut out or put in
        at = draw.randrange(len(text) + 1)
        broken[i] = text[:at] + bytes([draw.randrange(128, 256)] * draw.randrange(3)) + text[at + 1:]
    whole = ["\U0001f42f" * 50, "\u4e2d" * 700, "word\u00ad" * 2000, "\ufeff\u202e\u200d", "\x00", *nasty]
    whole = [text.replace("\n", " ").replace("\r", " ") for text in whole]
    return texts + broken + whole[:count - len(texts) - len(broken)]


class HuggingFace(live.Live):
    def test_real_and_nasty_texts(self):
        texts = many_texts(int(os.environ.get("AMUR_LIVE_TEXTS", "500")))
        # What is not UTF-8 counts as U+FFFD; whether all do so alike is seen here.
        valid = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in texts]
        minilm = self.minilm()
        tokenizer = os.path.join(minilm, "tokenizer.json")
        with open(self.path("texts.json"), "w", encoding="utf-8") as out:
            json.dump(valid, out)
        for limit in (256, 100000):
            self.ask("peer_encode.py", "--ids", minilm, "texts.json", "ids.json", limit)
            with open(self.path("ids.json"), encoding="utf-8") as file:
                theirs = json.load(file)
            ours = amur_ids(os.environ["AMUR_TOKENIZE_TEXTS"], tokenizer, texts, limit)
            different = [i for i in range(len(texts)) if ours[i] != theirs[i]]
            print(f"{len(texts)} texts cut at {limit}: {sum(map(len, ours))} tokens, "
                  f"{len(different)} texts with other ids")
            self.assertEqual(different, [], [texts[i][:80] for i in different[:5]])
        theirs = self.peer(minilm, valid, limit=3600)
        self.assert_same(self.ours(minilm, texts, limit=3600), theirs, 2e-6)

    def test_minilm(self):
        texts = NASTY + [text for pair in support.pairs(100, seed=5) for text in pair]
        minilm = self.minilm()
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

    def test_other_families(self):
        texts = [t for t in NASTY + ["", "don't <mask> we'll"] if "\n" not in t]
        for name in ("modernbert", "roberta", "xlm_roberta"):
            folder = os.path.join(FIXTURES, name)
            # Their weights are random: of one text, what rounding leaves of its mean is 2.2e-6 from fp64.
            theirs = self.peer(folder, texts)
            self.assert_same(self.ours(folder, texts), theirs, 5e-6)
            self.amur("import", "hf", folder, name + ".h5")
            self.amur("export", "hf", name + ".h5", name)
            self.assert_same(self.peer(name, texts), theirs, 2e-6)

    def test_models_from_scratch(self):
        texts = [text for pair in support.pairs(60, seed=5) for text in pair] + [
            "never seen", "\u00dcBER \u4e2d", "word " * 60, "1 2  3", "a"]
        for name, values in (("BERT", BERT), ("ModernBERT", MODERNBERT), ("Local", LOCAL),
                             ("Static", STATIC), ("plain", {"model.layers": 0})):
            self.train(name, values | {"train.steps": 20, "eval.every_steps": 0})
            self.amur("export", "hf", name, name + "-out")
            self.assert_same(self.peer(name + "-out", texts), self.ours(name, texts), 2e-6)

    def test_the_quick_start(self):
        from peers import trans_de_en

        run = os.environ.get("AMUR_LIVE_RUN")
        if run is None:
            run = "run"
            self.train(run, {"model.norm_position": "post", "train.steps": 10, "data.eval_limit": 100},
                       ranks=2, limit=300, config=os.path.join(live.HERE, "..", "..", "configs", "dictionary.yaml"))
        self.amur("export", "hf", run, "quick", ranks=2)
        texts = [text for pair in list(trans_de_en())[::800] for text in pair] + NASTY
        self.assert_same(self.ours(run, texts), self.peer("quick", texts), 5e-6)


if __name__ == "__main__":
    support.unittest.main()
