"""Texts to try tokenizers and models on, real and nasty, and Amur's ids of them.

`tool` is the program amur_tokenize_texts.
"""
import glob
import gzip
import random
import struct
import subprocess
import sys


def packed(texts):
    coded = [t if isinstance(t, bytes) else t.encode() for t in texts]
    return b"".join(struct.pack("<I", len(t)) + t for t in coded)


def run(tool, *arguments, texts=()):
    done = subprocess.run([tool, *map(str, arguments)], input=packed(texts), check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sys.stdout.write("".join(line + "\n" for line in done.stderr.decode().splitlines()
                             if "MB/s" in line))
    return done.stdout


def amur_ids(tool, file, texts, limit):
    data, at, result = run(tool, "ids", file, limit, texts=texts), 0, []
    while at < len(data):
        count, = struct.unpack_from("<I", data, at)
        result.append(list(struct.unpack_from(f"<{count}i", data, at + 4)))
        at += 4 + 4 * count
    return result


def names(tool):
    """Of languages and countries, in all locales (CLDR)."""
    data, at, result = run(tool, "names", 7), 0, []
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        result.append(data[at + 4:at + 4 + size].decode())
        at += 4 + size
    return result


def real_texts(tool, each):
    """WordNet's glosses, both sides of trans-de-en, names from CLDR; so many of each."""
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
                        ("names", sorted(set(names(tool))))):
        assert len(texts) >= each, f"{kind}: {len(texts)} texts"
        result += draw.sample(texts, each)
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
