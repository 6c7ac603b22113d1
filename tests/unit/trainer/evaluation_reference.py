"""What others make of the inputs of test_evaluation_tasks.cpp; writes evaluation_reference.json.

    pip install numpy scipy scikit-learn sentence-transformers pytrec-eval-terrier
    python3 tests/unit/trainer/evaluation_reference.py tests/unit/trainer/evaluation_reference.json

Inputs are whole numbers below 1001 (or over 64), so that every product of vectors is exact in fp32
and scores are the same everywhere.
"""
import json
import random
import sys

import numpy
import pytrec_eval
import scipy.stats
import torch
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

DRAW = random.Random(8)
RESAMPLES = 1000


# The bootstrap as src/train/evaluation/bootstrap.h states it, in another language.

def philox(key, low, high):
    k0, k1 = key & 0xffffffff, key >> 32
    c = [low & 0xffffffff, low >> 32, high & 0xffffffff, high >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xffffffff, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xffffffff]
        k0, k1 = (k0 + 0x9E3779B9) & 0xffffffff, (k1 + 0xBB67AE85) & 0xffffffff
    return c[0] | c[1] << 32


def resample(number, items):
    bootstrap = 9  # RandomPurpose::bootstrap
    key = philox(philox(0, bootstrap, 0x416d7572), number, 0x416d7572)
    return [philox(key, i, 0) * items >> 64 for i in range(items)]


def interval(items, statistic):
    values = [statistic(resample(r, items)) for r in range(RESAMPLES)]
    return [float(numpy.percentile(values, q)) for q in (2.5, 97.5)]


def means():
    values = [round(DRAW.random() ** 2, 3) for _ in range(60)]
    scipy_says = scipy.stats.bootstrap((values,), numpy.mean, n_resamples=20000, method="percentile",
                                       rng=1).confidence_interval
    return {"values": values,
            "interval": interval(60, lambda drawn: numpy.mean([values[i] for i in drawn])),
            "scipy": [scipy_says.low, scipy_says.high]}


# Rankings.

def ranking(queries, documents, width, scale, highest):
    q = [[DRAW.randint(-scale, scale) for _ in range(width)] for _ in range(queries)]
    d = [[DRAW.randint(-scale, scale) for _ in range(width)] for _ in range(documents)]
    qrels = {}
    for i in range(queries):
        scores = [sum(a * b for a, b in zip(q[i], row, strict=True)) for row in d]
        near = sorted(range(documents), key=lambda j: -scores[j])
        judged = set(DRAW.sample(near[:15], 4) + DRAW.sample(range(documents), DRAW.randint(1, 12)))
        qrels[f"q{i}"] = {f"d{j}": DRAW.randint(0, highest) for j in sorted(judged)}
        qrels[f"q{i}"][f"d{near[DRAW.randint(0, 30)]}"] = 1
    return q, d, qrels


def trec(q, d, qrels):
    run = {f"q{i}": {f"d{j}": float(sum(a * b for a, b in zip(x, y, strict=True)))
                     for j, y in enumerate(d)} for i, x in enumerate(q)}
    names = {"ndcg@10": "ndcg_cut.10", "map@10": "map_cut.10", "map@100": "map_cut.100",
             "precision@1": "P.1", "precision@5": "P.5", "precision@10": "P.10",
             "recall@1": "recall.1", "recall@5": "recall.5", "recall@10": "recall.10",
             "recall@100": "recall.100", "accuracy@1": "success.1", "accuracy@5": "success.5",
             "accuracy@10": "success.10"}
    found = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    table = {ours: [found[f"q{i}"][theirs.replace(".", "_")] for i in range(len(q))]
             for ours, theirs in names.items()}
    # BEIR's MRR@k: trec_eval has none with a limit.
    whole = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    ranks = [whole[f"q{i}"]["recip_rank"] for i in range(len(q))]
    table["mrr@10"] = [rank if rank >= 0.0999 else 0.0 for rank in ranks]
    return table


class Given:
    """Stands for a model: the text is the number of the vector."""

    def __init__(self, q, d):
        self.rows = {f"q{i}": row for i, row in enumerate(q)} | {f"d{j}": row for j, row in enumerate(d)}
        self.similarity_fn_name, self.similarity = "dot", lambda a, b: a @ b.T
        self.model_card_data = None

    def encode(self, texts, **_):
        return torch.tensor([self.rows[text] for text in texts], dtype=torch.float32)

    encode_query = encode_document = encode


def sentence_transformers(q, d, qrels):
    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": f"q{i}" for i in range(len(q))}, {f"d{j}": f"d{j}" for j in range(len(d))},
        {query: {doc for doc, relevance in judged.items() if relevance > 0}
         for query, judged in qrels.items()},
        mrr_at_k=[10], ndcg_at_k=[10], accuracy_at_k=[1, 5, 10], precision_recall_at_k=[1, 5, 10, 100],
        map_at_k=[10, 100], score_functions={"dot": lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T})
    found = evaluator.compute_metrices(Given(q, d))["dot"]
    return {f"{theirs}@{k}": float(value)
            for theirs, key in (("ndcg", "ndcg@k"), ("map", "map@k"), ("mrr", "mrr@k"),
                                ("accuracy", "accuracy@k"), ("precision", "precision@k"),
                                ("recall", "recall@k"))
            for k, value in found[key].items()}


def rankings():
    tied = ranking(70, 150, 6, 2, 3)  # many equal scores, graded relevance
    graded = {"queries": tied[0], "documents": tied[1], "qrels": tied[2], "trec": trec(*tied)}
    # No equal scores among those that count, one relevance, at most ten relevant documents.
    q, d, qrels = ranking(10, 130, 8, 1000, 1)
    for judged in qrels.values():
        for name in [name for name, relevance in judged.items() if relevance][10:]:
            judged[name] = 0
    scores = numpy.array(q) @ numpy.array(d).T
    assert all(len(set(row)) == len(row) for row in scores.tolist())
    return {"graded": graded,
            "binary": {"queries": q, "documents": d, "qrels": qrels, "trec": trec(q, d, qrels),
                       "sentence_transformers": sentence_transformers(q, d, qrels)}}


def correlation():
    a = [round(DRAW.gauss(0, 1), 1) for _ in range(50)]  # rounded: some are equal
    b = [round(x + DRAW.gauss(0, 1)) for x in a]
    rows = numpy.array([a, b])
    spearman = lambda drawn: scipy.stats.spearmanr(*rows[:, drawn]).statistic
    pearson = lambda drawn: scipy.stats.pearsonr(*rows[:, drawn]).statistic
    everyone = list(range(50))
    return {"a": a, "b": b,
            "spearman": [float(spearman(everyone)), *interval(50, spearman)],
            "pearson": [float(pearson(everyone)), *interval(50, pearson)]}


def classifier():
    labels = [DRAW.choice([0, 0, 1, 2, 2, 2]) for _ in range(60)]
    rows = [[round(64 * (DRAW.gauss(0, 1) + (label == k % 3))) / 64 for k in range(4)]
            for label in labels]
    found = LinearDiscriminantAnalysis(solver="lsqr").fit(numpy.array(rows), labels)
    return {"rows": rows, "labels": labels, "weight": found.coef_.tolist(),
            "bias": found.intercept_.tolist()}


with open(sys.argv[1], "w", encoding="utf-8") as out:
    json.dump({"means": means(), "rankings": rankings(), "correlation": correlation(),
               "classifier": classifier()}, out, separators=(",", ":"))
    out.write("\n")
