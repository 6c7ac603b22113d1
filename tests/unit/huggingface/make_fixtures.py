"""Makes the folders under fixtures/ and what sentence-transformers computes with them.

Not run by the tests. With torch, transformers and sentence-transformers (made with 6.2):
  python make_fixtures.py fixtures [NAME..]
bert/        laid out as older versions did (all-MiniLM-L6-v2): flags for pooling, a pooler
distilbert/  as the newest saves it: first token, a projection without bias, prompts, half precision
modernbert/  two of four layers see 4 tokens on either side, of texts of up to 20, and have another
             rotary base
roberta/     bytes as tokens; positions behind that of the padding token, one token type
xlm_roberta/ pieces and SentencePiece's table as tokens
*/expected.json   texts, token ids and embeddings of queries and documents
"""
import base64
import json
import pathlib
import shutil
import string
import sys

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.base.modules import Dense, Normalize
from tokenizers import BertWordPieceTokenizer
from transformers import (BertConfig, BertModel, DistilBertConfig, DistilBertModel,
                          ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast, RobertaConfig,
                          RobertaModel, RobertaTokenizer, XLMRobertaConfig, XLMRobertaModel,
                          XLMRobertaTokenizer)

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "data" / "fixtures"))
from make_json_tokenizer_cases import RULES, bpe_model, table, unigram_model

WORDS = "the a of and to in is it on for with as at by cat dog tiger river ##ing ##ed ##s ##er".split()
TEXTS = ["The tigers of the Amur river.", "", "a", "Dogs, cats and TIGERS!", "\u00fcber caf\u00e9 na\u00efve",
         "it is " * 40, "\u4e2d\u6587 text", "walking walked walks walker", "x\u0000y\ufffd z",
         "an unknown \U0001f42f sign", "  blanks\tand\nlines  ", "0123456789 9876543210"]
HIDDEN, HEADS, FFN, LAYERS, POSITIONS = 24, 3, 40, 2, 32


def tokenizer(folder):
    signs = string.ascii_lowercase + string.digits + string.punctuation + "\u00fc"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs,
              *("##" + c for c in string.ascii_lowercase + string.digits), *WORDS]
    tokens = list(dict.fromkeys(tokens))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    made = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    made.save(str(folder / "tokenizer.json"))
    return len(tokens)


def spread(model, seed):
    """Weights large enough that every part of the function shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name.lower():
                p.copy_(torch.randn_like(p) * 0.3 + (1 if name.endswith("weight") else 0))
            else:
                p.copy_(torch.randn_like(p) * (0.5 if "embedding" in name else 0.3))


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def expected(folder, max_length):
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == max_length
    write_json(folder / "expected.json", {
        "texts": TEXTS,
        "ids": [model.tokenizer(t, truncation=True, max_length=max_length)["input_ids"]
                for t in TEXTS],
        "query": model.encode_query(TEXTS, normalize_embeddings=True).tolist(),
        "document": model.encode_document(TEXTS, normalize_embeddings=True).tolist()})


def bert(folder):
    folder.mkdir()
    vocab = tokenizer(folder)
    model = BertModel(BertConfig(
        vocab_size=vocab, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=FFN, max_position_embeddings=POSITIONS, hidden_act="gelu"))
    spread(model, 1)
    model.save_pretrained(folder)
    write_json(folder / "tokenizer_config.json", {
        "do_lower_case": True, "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
        "cls_token": "[CLS]", "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer",
        "model_max_length": POSITIONS})
    write_json(folder / "special_tokens_map.json", {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]"})
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": "sentence_transformers.models." + kind}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"),
                                          ("2_Normalize", "Normalize")])])
    write_json(folder / "1_Pooling/config.json", {
        "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False})
    write_json(folder / "sentence_bert_config.json",
               {"max_seq_length": 20, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json",
               {"__version__": {"sentence_transformers": "2.0.0"}})
    expected(folder, 20)


def distilbert(folder):
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    vocab = tokenizer(scratch)
    model = DistilBertModel(DistilBertConfig(
        vocab_size=vocab + 3, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=FFN,
        max_position_embeddings=POSITIONS, activation="relu"))
    spread(model, 2)
    model.save_pretrained(scratch)
    PreTrainedTokenizerFast(
        tokenizer_file=str(scratch / "tokenizer.json"), unk_token="[UNK]", pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_max_length=POSITIONS).save_pretrained(scratch)
    transformer = Transformer(str(scratch))
    dense = Dense(HIDDEN, 10, bias=False, activation_function=torch.nn.Identity())
    spread(dense, 3)
    whole = SentenceTransformer(
        modules=[transformer, Pooling(HIDDEN, "cls"), dense, Normalize()], device="cpu",
        prompts={"query": "query: ", "document": "passage: "})
    whole.half().save(str(folder), create_model_card=False)
    shutil.rmtree(scratch)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # the numbers are halves, the arithmetic is not
    write_json(folder / "config.json", config)
    expected(folder, POSITIONS)


def modernbert(folder):
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    vocab = tokenizer(scratch)
    model = ModernBertModel(ModernBertConfig(
        vocab_size=vocab + 2, hidden_size=HIDDEN, num_hidden_layers=4, num_attention_heads=HEADS,
        intermediate_size=FFN, max_position_embeddings=POSITIONS, local_attention=8,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3))
    spread(model, 4)
    model.save_pretrained(scratch)
    PreTrainedTokenizerFast(
        tokenizer_file=str(scratch / "tokenizer.json"), unk_token="[UNK]", pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_max_length=20).save_pretrained(scratch)
    SentenceTransformer(
        modules=[Transformer(str(scratch)), Pooling(HIDDEN, "mean"), Normalize()],
        device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(scratch)
    expected(folder, 20)


def roberta_like(folder, tokenizer, size, model_class, config_class, pooling):
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    model = model_class(config_class(
        vocab_size=size + 1, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=FFN, max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2))
    spread(model, 5)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    SentenceTransformer(
        modules=[Transformer(str(scratch)), Pooling(HIDDEN, pooling), Normalize()],
        device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(scratch)
    expected(folder, POSITIONS)


def roberta(folder):
    made = bpe_model(TEXTS + WORDS * 3, 330)
    tokenizer = RobertaTokenizer(vocab=made["vocab"], merges=[tuple(m) for m in made["merges"]],
                                 model_max_length=POSITIONS)
    roberta_like(folder, tokenizer, len(made["vocab"]), RobertaModel, RobertaConfig, "cls")


def xlm_roberta(folder):
    made = unigram_model(TEXTS + WORDS * 3, 160)
    tokenizer = XLMRobertaTokenizer(
        vocab=[tuple(piece) for piece in made["vocab"]], model_max_length=POSITIONS,
        _spm_precompiled_charsmap=base64.b64decode(table(RULES)))
    roberta_like(folder, tokenizer, len(made["vocab"]), XLMRobertaModel, XLMRobertaConfig, "mean")


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    made = {"bert": bert, "distilbert": distilbert, "modernbert": modernbert,
            "roberta": roberta, "xlm_roberta": xlm_roberta}
    for name in sys.argv[2:] or made:
        shutil.rmtree(root / name, ignore_errors=True)
        made[name](root / name)
