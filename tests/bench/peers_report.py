"""The document of tests/bench/peers.py, from what it measured."""
import os
import statistics

from svg_plot import plot

SAME_LOSS_PAIRS = 256  # of ten steps on one batch, at most

PRETRAINED_HEAD = """\
# Against sentence-transformers

Written by `tests/bench/peers.sh`; raw figures in `peers.json`. Both sides train all-MiniLM-L6-v2 on the same pairs with
the same loss, batch, temperature and AdamW, without dropout, tokenizing as they go, and take turns.

{machine} Load average before: {load}.
"""
BUILT_HEAD = """\
# Against sentence-transformers

Written by `tests/bench/peers.py` with a model that it made; raw figures in `peers.json`. Both sides train the same BERT,
with random weights, on the same tokens with the same loss, batch, temperature and AdamW, without dropout, and take turns.
Neither side's reading and tokenizing is counted: the peer did it ahead, of Amur's steps it is taken off (`data` says how
much that was). A rate is of the median step, behind those to warm up. The peer pads each mini-batch to its own longest text
and computes under autocast to bf16. Memory is the most that was ever allocated on the device; on a CPU that of the process.
Amur as it is gives out nine tenths of the memory that it finds free, so that only its lean setting can be compared there.

{machine} Load average before: {load}.
"""


def median(line, key):
    return statistics.median(run[key] for run in line["runs"])


def against(line, other):
    """Ratio of pairs a second, and of memory."""
    return (f"**{median(line, 'rate') / median(other, 'rate'):.1f}** "
            f"({median(line, 'peak') / median(other, 'peak'):.2f})")


def best_of(lines, side, precision=None, lean=None, setting=None):
    found = [line for line in lines if line["runs"] and line["side"] == side and precision in (None, line["precision"])
             and lean in (None, line["setting"].endswith("lean")) and setting in (None, line["setting"])]
    return max(found, key=lambda line: median(line, "rate"), default=None)


def pretrained_result(own, lean):
    """Of every text, Amur in both precisions against the peer's fastest."""
    out = [f"""## Result

The peer at its fastest setting in any precision, Amur at its fastest
within `train.activation_budget=1GiB` and `train.chunk_tokens=4096`, and with `{lean[0]}`, `{lean[1]}` (lean):
the ratio of pairs a second, and in brackets that of peak resident memory (of all ranks; the peer's of that setting).

| texts | peer, pairs/s | Amur fp32 | fp32, lean | bf16 | bf16, lean |
| --- | --- | --- | --- | --- | --- |"""]
    for name, lines in own.items():
        other = best_of(lines, "sentence-transformers")
        ratios = [against(best_of(lines, "Amur", precision, lean), other)
                  for precision in ("fp32", "bf16") for lean in (False, True)]
        out.append(f"| {name} | {median(other, 'rate'):.1f} ({other['precision']}, {other['setting']}) | " +
                   " | ".join(ratios) + " |")
    return out


def built_result(own, plan):
    """Of every text, Amur against the peer as it is and at its fastest, and lean against both."""
    out = ["""## Result

The ratio of pairs a second, and in brackets that of memory, against the peer as it is and at its fastest setting. Aims:
6 on a mix of lengths, 2 on equal ones, memory of at most 0.4.

| texts | peer as it is, pairs/s | its fastest | Amur at its fastest, pairs/s | against as it is | against its fastest | lean against as it is | lean against its fastest |
| --- | --- | --- | --- | --- | --- | --- | --- |"""]
    for name, lines in own.items():
        default = best_of(lines, "sentence-transformers", setting=plan.peer[0][0][0])
        fastest, amur = best_of(lines, "sentence-transformers"), best_of(lines, "Amur")
        lean = best_of(lines, "Amur", lean=True)
        cells = [f"{median(line, 'rate'):.1f} ({line['setting']})" if line else "none" for line in (default, fastest, amur)]
        cells += [against(line, other) if line and other else "none"
                  for line, other in ((amur, default), (amur, fastest), (lean, default), (lean, fastest))]
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


def all_settings(lines, phases, built):
    rates_of = "" if built else (" the products of a\nlayer alone reach the rates of [cpu.md](cpu.md).")
    out = [f"""
## All settings

Median of the rounds (lowest, highest). The model's operations a second count what is computed twice once{';' if rates_of else '.'}{rates_of} The rest is where the time of Amur's steps goes.

| texts | program | setting | precision | pairs/s | peak, GB | model GFLOP/s | {" | ".join(f"{phase}, %" for phase in phases)} |{" data, % |" if built else ""}
| --- | --- | --- | --- | --- | --- | --- |{" --- |" * (len(phases) + built)}"""]
    for line in lines:
        if not line["runs"]:
            out.append(f"| {line['texts']} | {line['side']} | {line['setting']} | {line['precision']} | "
                       f"{line['problem']} |" + " |" * (2 + len(phases) + built))
            continue
        rates = [run["rate"] for run in line["runs"]]
        profile = [""] * (1 + len(phases) + built)
        if line["side"] == "Amur":
            profile = [f"{median(line, 'flops') * 1e-9:.0f}"] + [
                f"{100 * statistics.median(run['phases'][phase] for run in line['runs']):.0f}" for phase in phases]
            profile += [f"{100 * median(line, 'data'):.0f}"] if built else []
        out.append(f"| {line['texts']} | {line['side']} | {line['setting']} | {line['precision']} | "
                   f"{statistics.median(rates):.1f} ({min(rates):.1f}, {max(rates):.1f}) | "
                   f"{median(line, 'peak') * 1e-9:.2f} | " + " | ".join(profile) + " |")
    return out


def same_losses(curves, what):
    if not curves:
        return ["\n## The same losses\n\nNot run: they are compared on a CPU, with `peers.py --device cpu`."]
    difference = max(abs(a - b) / a for a, b in zip(curves["sentence-transformers, fp32"], curves["Amur, fp32"],
                                                    strict=True))
    out = [f"\n## The same losses\n\nTen steps on one batch of {what}. Largest relative "
           f"difference in fp32: {difference:.1e}.\n\n![losses](peers.svg)\n\n"
           f"| step | {' | '.join(curves)} |\n{'| --- ' * (len(curves) + 1)}|"]
    for step, values in enumerate(zip(*curves.values(), strict=True)):
        out.append(f"| {step + 1} | " + " | ".join(f"{value:.6f}" for value in values) + " |")
    return out


def write_report(folder, plan, built, lean, phases, measured):
    """`measured`: `lines`, `losses`, `machine`, `load`."""
    lines, curves = measured["lines"], measured["losses"]
    own = {name: [line for line in lines if line["texts"] == name] for name in dict.fromkeys(
        line["texts"] for line in lines)}
    first = next(iter(plan.texts))
    what = f"{min(SAME_LOSS_PAIRS, plan.texts[first].batch)} pairs of {first}" + ("" if built else ", 2 ranks")
    out = [(BUILT_HEAD if built else PRETRAINED_HEAD).format(**measured),
           *(built_result(own, plan) if built else pretrained_result(own, lean)),
           *all_settings(lines, phases, built), *same_losses(curves, what)]
    with open(os.path.join(folder, "peers.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")
    if curves:
        plot(os.path.join(folder, "peers.svg"), "Ten steps on one batch", "step", "loss",
             [(name, list(enumerate(values, 1))) for name, values in curves.items()])
