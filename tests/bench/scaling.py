"""Expected step times on 8 to 1,024 GPUs from what one GPU was measured to do: docs/scaling.md has the formulas.

  scaling.py MEASURED.json [--pairs N] [--node LINK] [--network LINK] [--per-node N]

MEASURED.json is the `benchmarks.json` that launch/gpu-check.sh wrote. Prints Markdown. A LINK is bytes a second out of
one GPU and seconds a message, "450e9,2e-6"; the default ones are published figures, not measured ones.
"""
import argparse
import json
import math

# NVLink 4 of an H100 or H200 in one direction (900 GB/s both ways: NVIDIA's data sheet of the H100), and one NDR InfiniBand
# adapter of 400 Gbit/s a GPU, as in NVIDIA's DGX H100. Seconds a message: order of magnitude, of little weight here.
NODE, NETWORK, PER_NODE = "450e9,2e-6", "50e9,5e-6", 8
COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


class Link:
    def __init__(self, text):
        self.bytes, self.seconds = (float(word) for word in text.split(","))

    def all_reduce(self, size, ranks):
        """Reduce-scatter and all-gather over a ring: twice one of the two."""
        return 2 * self.all_gather(size, ranks)

    def all_gather(self, size, ranks):
        """`size`: of what every rank has at the end."""
        return 0 if ranks < 2 else (ranks - 1) / ranks * size / self.bytes + math.log2(ranks) * self.seconds


class Machine:
    def __init__(self, ranks, options):
        self.in_node = min(ranks, options.per_node)
        self.nodes = math.ceil(ranks / options.per_node)
        self.node, self.network = options.node, options.network

    def all_reduce(self, size):
        """Inside each node first; then each GPU with those of its number in the others."""
        return self.node.all_reduce(size, self.in_node) + self.network.all_reduce(size / self.in_node, self.nodes)

    def all_gather(self, size):
        """Through the adapters, then every GPU hands on what came in to its node."""
        return self.network.all_gather(size / self.in_node, self.nodes) + self.node.all_gather(size, self.in_node)


class Measured:
    """What the formulas take from the measured step and loss stage."""

    def __init__(self, step, loss):
        self.parameters = step["parameters"]
        self.pass_seconds = (step["phases"]["pass1"] + step["phases"]["pass2"]) / step["pairs"]
        self.update = step["phases"]["update"] + step["phases"]["touch"]
        # The pass back through the last chunk, beside which sums travel: two of three parts of its time.
        self.last_chunk = 2 / 3 * (step["phases"]["pass1"] + step["phases"]["pass2"]) / step["chunks"]
        self.loss_rate = loss["flops_per_second"]
        self.tokens_per_pair = 2 * step["mean_length"]


def step_seconds(measured, width, table_parameters, pairs, ranks, options):
    """The parts of a step of a global batch of `pairs`, in the order of docs/scaling.md."""
    machine = Machine(ranks, options)
    vectors = 4 * width * pairs  # documents, f32
    dense = machine.all_reduce(4 * (measured.parameters - table_parameters))
    parts = {
        "passes": pairs / ranks * measured.pass_seconds,
        "loss": 8 * pairs * pairs * width / (ranks * measured.loss_rate),
        "vectors": 2 * machine.all_gather(vectors),
        "sync": max(0, dense - measured.last_chunk) + machine.all_reduce(4 * table_parameters) if ranks > 1 else 0,
        "update": measured.update,
    }
    return parts | {"step": sum(parts.values())}


def table(name, measured, width, table_parameters, pairs, options):
    lines = [f"### {name}", "",
             f"{measured.parameters / 1e6:.0f} M parameters, {measured.tokens_per_pair:.0f} tokens a pair.", ""]
    for title, batch_of in ((f"{pairs:,} pairs a GPU", lambda ranks: pairs * ranks),
                            (f"{64 * pairs:,} pairs in all", lambda ranks: 64 * pairs)):
        lines += [f"{title}:", "", "| GPUs | pairs | passes, s | loss, s | vectors, s | sum, s | update, s | step, s | "
                  "pairs/s | of ideal |", "| --- |" + " --- |" * 9]
        one = step_seconds(measured, width, table_parameters, batch_of(1), 1, options)["step"] / batch_of(1)
        for ranks in COUNTS:
            batch = batch_of(ranks)
            parts = step_seconds(measured, width, table_parameters, batch, ranks, options)
            lines.append("| " + " | ".join([str(ranks), f"{batch:,}", *(f"{seconds:.4g}" for seconds in parts.values()),
                                           f"{batch / parts['step']:,.0f}",
                                           f"{one * batch / ranks / parts['step']:.2f}"]) + " |")
        lines.append("")
    return lines


def tensor_parallel(name, rate, width, options):
    """Whether t GPUs of one node should share the layers: a layer's sums against its products."""
    lines = [f"### {name}: layers shared by t GPUs of a node", "",
             "| t | products of a token and layer, ns | its sums, ns | step by step / data parallel |", "| --- |" + " --- |" * 3]
    for ranks in (2, 4, 8):
        products = 72 * width * width / rate  # forward and backward of the whole layer
        sums = 4 * options.node.all_reduce(2 * width, ranks) - 8 * math.log2(ranks) * options.node.seconds
        lines.append(f"| {ranks} | {products / ranks * 1e9:.1f} | {sums * 1e9:.1f} | {1 + sums * ranks / products:.2f} |")
    return [*lines, ""]


WIDTHS = {"tiny": 64, "minilm": 384, "bert-base": 768, "bert-large": 1024}
VOCABULARY = 30522


def main():
    options = argparse.ArgumentParser()
    options.add_argument("measured")
    options.add_argument("--pairs", type=int, default=1024, help="of a GPU")
    options.add_argument("--node", type=Link, default=Link(NODE))
    options.add_argument("--network", type=Link, default=Link(NETWORK))
    options.add_argument("--per-node", type=int, default=PER_NODE)
    options = options.parse_args()
    with open(options.measured, encoding="utf-8") as file:
        report = json.load(file)
    losses = [loss for loss in report["loss"].values() if "error" not in loss and not loss["overrides"]]
    good = {name: step for name, step in report["steps"].items() if "error" not in step}
    # As the recipes train: bf16, everything else as it is.
    steps = {name: step for name, step in good.items() if step["precision"] == "bf16" and not step["overrides"]} or good
    if not losses or not steps:
        raise SystemExit(f"{options.measured}: no step and no loss stage was measured")
    device = next(iter(steps.values()))["device"]
    print("\n".join([f"Computed by `tests/bench/scaling.py` from figures measured on one {device}; "
                     f"links of {options.node.bytes / 1e9:g} GB/s in a node of {options.per_node} and of "
                     f"{options.network.bytes / 1e9:g} GB/s a GPU between nodes. No row of more than one GPU was measured.",
                     *(["", "**Measured without a GPU: the rows show that the command works, nothing else.**"]
                       if report["device"] == "cpu" else []), ""]))
    for name, step in steps.items():
        width = WIDTHS[step["model"]]
        loss = min(losses, key=lambda entry, width=width: abs(entry["width"] - width))
        measured = Measured(step, loss)
        print("\n".join(table(name, measured, width, VOCABULARY * width, options.pairs, options)))
    for model in dict.fromkeys(step["model"] for step in steps.values()):
        rate = max(step["model_flops_per_second"] for step in steps.values() if step["model"] == model)
        print("\n".join(tensor_parallel(model, rate, WIDTHS[model], options)))


if __name__ == "__main__":
    main()
