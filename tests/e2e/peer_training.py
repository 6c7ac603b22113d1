"""One model trained by PyTorch, for live_training.py; run by an interpreter that has it.

  peer_training.py gradients FOLDER PAIRS.tsv OUT.npz SCALE fp32|fp64
      the gradients of one contrastive batch of all pairs by autograd, without dropout, under the
      names of the folder's tensors; "loss"; "loss.log_scale" and "loss.log_scale:size", sum |G S|
  peer_training.py steps FOLDER PAIRS.tsv OUT.npz SCALE RATE EPSILON STEPS
      the weights after so many steps of AdamW on that batch, and "losses"
  peer_training.py retrieval FOLDER PAIRS.tsv
      what InformationRetrievalEvaluator says of pairs whose texts come once, both ways, as JSON
"""
import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="")


def pairs_of(path):
    with open(path, encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in lines]


def loaded(folder, dtype):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    return SentenceTransformer(folder, device="cpu").to(dtype).eval()  # eval: no dropout


def loss_of(model, batch, log_scale):
    """Both directions, and the logits."""
    import torch

    preprocess = getattr(model, "preprocess", None) or model.tokenize
    sides = [model(preprocess([pair[side] for pair in batch]))["sentence_embedding"] for side in (0, 1)]
    queries, documents = (torch.nn.functional.normalize(side) for side in sides)
    logits = log_scale.exp() * queries @ documents.T
    logits.retain_grad()
    right = torch.arange(len(batch))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2, logits


def named(model):
    """The encoder's tensors, by their names in model.safetensors."""
    return dict(model[0].auto_model.named_parameters())


def gradients(folder, pairs, out, scale, precision):
    import numpy
    import torch

    dtype = {"fp32": torch.float32, "fp64": torch.float64}[precision]
    model = loaded(folder, dtype)
    log_scale = torch.tensor(float(scale), dtype=torch.float64).log().to(dtype).requires_grad_()
    loss, logits = loss_of(model, pairs_of(pairs), log_scale)
    loss.backward()
    found = {name: p.grad.numpy() for name, p in named(model).items() if p.grad is not None}
    numpy.savez(out, **found, **{"loss": loss.item(), "loss.log_scale": log_scale.grad.item(),
                                 "loss.log_scale:size": (logits.grad * logits).abs().sum().item()})


def steps(folder, pairs, out, scale, rate, epsilon, count):
    import numpy
    import torch

    model = loaded(folder, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(rate), eps=float(epsilon), weight_decay=0)
    losses = []
    for _ in range(int(count)):
        loss, _ = loss_of(model, pairs_of(pairs), torch.tensor(float(scale)).log().requires_grad_())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    numpy.savez(out, **{name: p.detach().numpy() for name, p in named(model).items()}, losses=losses)


def retrieval(folder, pairs):
    import torch
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    model = loaded(folder, torch.float32)
    texts = pairs_of(pairs)
    sides = [{f"{i:06}": pair[side] for i, pair in enumerate(texts)} for side in (0, 1)]
    found = {}
    for name, (asked, pool) in {"query_to_document": sides, "document_to_query": sides[::-1]}.items():
        evaluator = InformationRetrievalEvaluator(
            asked, pool, {key: {key} for key in asked}, accuracy_at_k=[1, 5, 10], ndcg_at_k=[10],
            precision_recall_at_k=[1, 5, 10], mrr_at_k=[len(texts)], name="", write_csv=False)
        values = evaluator(model)
        found[name] = {"recall@1": values["cosine_recall@1"], "recall@5": values["cosine_recall@5"],
                       "recall@10": values["cosine_recall@10"],
                       "mrr": values[f"cosine_mrr@{len(texts)}"], "ndcg@10": values["cosine_ndcg@10"]}
    print(json.dumps(found))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
