"""Plots the loss of a run that grew on its way (train.growth).

growth_run_plot.py RUN_FOLDER OUT.svg
"""
import json
import os
import sys

from svg_plot import plot


def main():
    run, out = sys.argv[1:]
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        metrics = [json.loads(line) for line in lines]
    grown = [line for line in metrics if "growth" in line]
    points = [(line["step"], line["loss"]) for line in metrics if line["loss"] is not None]
    sizes = ", ".join(f"step {line['step'] - 1}: {line['growth']['parameters_before'] * 1e-6:.1f} to "
                      f"{line['growth']['parameters_after'] * 1e-6:.1f} million parameters" for line in grown)
    plot(out, f"Loss across growth ({sizes})", "step", "loss", [("loss", points)],
         marks=[("grown", line["step"] - 0.5) for line in grown])


if __name__ == "__main__":
    main()
