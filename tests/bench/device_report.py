"""Makes a document of what launch/gpu-check.sh measured: device_report.py FOLDER [DOCUMENT].

FOLDER holds the <part>.json and <part>.log of the parts that were run; DOCUMENT is FOLDER.md where it is not
given. Figures are taken from the files and from nowhere else: a part that is not there is said to be missing.
"""
import json
import os
import re
import sys

PARTS = ("tests", "sanitizer", "benchmarks", "training", "peers")
AIMS = {"minilm, 128 tokens": 0.55, "bert-base, 128 tokens": 0.70, "bert-large, 128 tokens": 0.75}
PHASES = ("touch", "pass1", "loss", "pass2", "update")
RULES = {"0": ("Tiger", 0.9), "1": ("Lion", None), "2": ("AdamW", None)}
UPDATE_BYTES = 24  # of Tiger's update, a parameter in f32, at least
# What a kernel is for, by a part of its name; the first that fits. The rest is listed by itself.
CLASSES = (("attention", r"attention|flash|sdpa|cudnn|rotary"), ("products", r"gemm|cutlass|nvjet|xmma|cublas|splitk"),
           ("norm", r"norm"), ("activation", r"activation|gelu"), ("embedding and pooling", r"embedding|pool|position"),
           ("loss stage", r"contrastive|exclude|statistics|softmax|sigmoid"), ("bias sums", r"column_(partials|finish)|bias"),
           ("update", r"update|sign|adam|lion|tiger|squares|finite"), ("dropout and additions", r"dropout|axpy|scale|cast|gate"),
           ("copies and fills", r"^copy|^fill|move_rows|memcpy|memset"))


def table(heads, rows):
    """Lines of a table, and an empty one behind it."""
    return ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |",
            *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def giga(value):
    return f"{value * 1e-9:.2f}"


def rate(value):
    """Operations a second."""
    return f"{value * 1e-12:.1f} TFLOP/s" if value >= 1e12 else f"{value * 1e-9:.1f} GFLOP/s"


def milliseconds(seconds):
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def share(part, whole):
    return f"{100 * part / whole:.1f}" if whole else ""


def is_error(entry):
    return "error" in entry


def class_of(kernel):
    for name, pattern in CLASSES:
        if re.search(pattern, kernel, re.IGNORECASE):
            return name
    return "other"


def checks(name, part):
    """Of `tests` and `sanitizer`: what passed, what did not."""
    if part is None:
        return [f"## {name.capitalize()}", "", "Not run.", ""]
    return [f"## {name.capitalize()}", "", f"On {part['device_name']}; everything that was printed: {name}.log.", "",
            *table(("part", "result", "seconds"), [(c["name"], c["result"], c["seconds"]) for c in part["checks"]])]


def floors(steps, kernels):
    """Of every program: each measures them again, just behind its own figures."""
    rows = [(name, f"{s['floors']['product_size']}^3", rate(s["floors"]["flops_per_second"]),
             f"{giga(s['floors']['bytes_per_second'])} GB/s")
            for name, s in steps.items() if not is_error(s)]
    if not is_error(kernels):
        context = kernels["context"]
        rows.append(("kernels", f"{context['product_size']}^3", rate(float(context["floor_flops"])),
                     f"{giga(float(context['floor_bytes']))} GB/s"))
    return ["## Floors", "", "A product of two square bf16 matrices, through the call that training uses and by an algorithm "
            "that was chosen by measuring, and a copy (bytes read and written). Each program measured them itself.", "",
            *table(("measured with", "matrices", "product", "copy"), rows)]


def step_tables(steps):
    good = {name: s for name, s in steps.items() if not is_error(s)}
    out = ["## Training steps", "", "Whole steps of one rank on random tokens: both passes, loss stage, update. Model "
           "FLOP/s count three forward passes and nothing twice; the fraction is of the product above, measured by the "
           "same program. Algorithms of products and engines of attention are chosen by measuring, as in a training, "
           "where the step's name says nothing else.", ""]
    rows = []
    for name, s in steps.items():
        if is_error(s):
            rows.append((name, s["error"], *[""] * 7))
            continue
        aim = AIMS.get(name)
        rows.append((name, f"**{s['fraction']:.3f}**", aim or "", rate(s["model_flops_per_second"]),
                     f"{s['tokens_per_second']:,.0f}", f"{s['pairs_per_second']:,.1f}", milliseconds(s["seconds"]),
                     f"{s['chunks']} ({s['recomputed_chunks']} twice)", s["attention"]))
    out += table(("step", "fraction", "aim", "model", "tokens/s", "pairs/s", "ms", "chunks", "attention"), rows)
    out += ["Where the time goes, in % of the step; the device has finished a phase where the next begins.", ""]
    out += table(("step", *PHASES, "rest"), [
        (name, *(share(s["phases"][phase], s["seconds"]) for phase in PHASES),
         share(s["seconds"] - sum(s["phases"].values()), s["seconds"])) for name, s in good.items()])
    out += ["Memory. Training state is what lives from step to step: weights and optimizer.", ""]
    out += table(("step", "bytes a parameter", "weights, MB", "optimizer, MB", "activations, GB", "peak, GB"), [
        (name, f"**{(s['weight_bytes'] + s['optimizer_bytes']) / s['parameters']:.2f}**",
         f"{s['weight_bytes'] * 1e-6:.1f}", f"{s['optimizer_bytes'] * 1e-6:.1f}", giga(s["activation_bytes"]),
         giga(s["peak_bytes"])) for name, s in good.items()])
    return out


def update_table(steps):
    """The whole of Tiger's update, as the steps had it."""
    rows = [(name, f"**{UPDATE_BYTES * s['parameters'] / s['phases']['update'] / s['floors']['bytes_per_second']:.2f}**",
             RULES["0"][1], milliseconds(s["phases"]["update"]))
            for name, s in steps.items() if not is_error(s) and s["optimizer"] == "tiger"
            and not any(setting.startswith("optimizer.") for setting in s["overrides"])]
    return ["The whole of Tiger's update in the steps, f32, as a fraction of the rate of a copy. "
            f"{UPDATE_BYTES} bytes a parameter are counted: the momentum scaled before the gradients are added to it (8), its "
            "squares (4), weight and momentum at the end (12); the squares of matrices' weights (4) are not. Rows of tables that a "
            "step does not touch are left alone, and counted: nearly none where a batch has many times the vocabulary.", "",
            *table(("step", "fraction of copying", "aim", "ms"), rows)]


def profile_tables(profiles, steps):
    out = ["## Profile by kernels", ""]
    if is_error(profiles):
        return [*out, f"None: {profiles['error']}.", ""]
    for name, profile in profiles.items():
        out += [f"### {name}", ""]
        if is_error(profile):
            out += [f"None: {profile['error']}.", ""]
            continue
        sums, calls = {}, {}
        for kernel, count, seconds in profile["kernels"]:
            kind = class_of(kernel)
            sums[kind] = sums.get(kind, 0) + seconds
            calls[kind] = calls.get(kind, 0) + count
        busy = sum(sums.values())
        # The profiler makes steps longer, and kernels hardly.
        whole = steps.get(name, {}).get("seconds", profile["step_seconds"])
        out += [f"The GPU was busy for {share(busy, whole)} % of a step of {milliseconds(whole)} ms, which took "
                f"{milliseconds(profile['step_seconds'])} ms under the profiler; {profile['dropped']} records were lost. What "
                f"came before the first step, the weights' way to the GPU, is spread over the {profile['steps']} steps.", ""]
        out += table(("kind", "calls a step", "ms", "% of the step"),
                     [(kind, f"{calls[kind]:.0f}", milliseconds(seconds), share(seconds, whole))
                      for kind, seconds in sorted(sums.items(), key=lambda item: -item[1])] +
                     [("the GPU waits", "", milliseconds(max(0, whole - busy)), share(max(0, whole - busy), whole))])
        out += table(("kernel", "calls a step", "ms", "% of the step"),
                     [(f"`{kernel[:100]}`", f"{count:.0f}", milliseconds(seconds), share(seconds, whole))
                      for kernel, count, seconds in profile["kernels"][:12]])
    return out


def loss_table(stages):
    rows = []
    for name, s in stages.items():
        if is_error(s):
            rows.append((name, s["error"], "", "", ""))
        else:
            rows.append((name, milliseconds(s["seconds"]), f"{s['fraction']:.3f}", rate(s["flops_per_second"]),
                         f"{s['extra_bytes'] * 1e-9:.3f}"))
    return ["## Loss stage", "", "Loss and gradients of all texts, `8 rows^2 width` operations, by `loss.precision`; "
            "fraction of the rate of a large product in bf16; memory beside the embeddings and their gradients. Aim: at "
            "most 0.5 GB at 65,536 x 768.", "",
            *table(("rows x width, precision", "ms", "fraction", "rate", "extra, GB"), rows)]


def kernel_tables(kernels):
    """Names are <kernel>/<arguments>/real_time."""
    if is_error(kernels):
        return ["## Kernels", "", f"Not measured: {kernels['error']}.", ""]
    measured = {}
    for entry in kernels["benchmarks"]:
        name, *arguments = [word for word in entry["name"].split("/") if word != "real_time"]
        measured.setdefault(name, []).append((arguments, entry))
    out = ["## Kernels", "", f"On {kernels['context']['tokens']} tokens. `copies`: time as a multiple of copying what has "
           "to be read and written; `peak`: share of the product's rate above.", ""]
    out += [f"Not all of `{wanted}`: {problem}.\n" for wanted, problem in kernels.get("problems", {}).items()]
    if "optimizer_update" in measured:
        out += ["One update of all parameters in f32, as a fraction of the rate of a copy. Of Tiger it is the last kernel "
                f"alone, 12 of the {UPDATE_BYTES} bytes a parameter; the whole stands with the steps.", ""]
        out += table(("rule", "fraction of copying", "aim", "ms"),
                     [(RULES[arguments[0]][0], f"**{1 / entry['copies']:.2f}**", RULES[arguments[0]][1] or "",
                       milliseconds(entry["real_time"] * 1e-9))
                      for arguments, entry in measured.pop("optimizer_update")])
    rows = {}
    for engine, name in (("own", "attention_by_length"), ("cuDNN", "attention_by_cudnn")):
        for arguments, entry in measured.pop(name, []):
            dtype, backward, length, window, size = map(int, arguments)
            rows.setdefault((("f32", "bf16")[dtype], size, length, window or "all", engine), {})[backward] = entry
    if rows:
        def cells(entry):
            if "FLOP/s" not in entry:
                return entry.get("error_message", ""), "", ""
            return rate(entry["FLOP/s"]), f"{entry['peak']:.3f}", f"{entry['copies']:.1f}"
        order = sorted(rows, key=lambda key: (*key[:3], key[3] != "all", key[4] != "own"))
        out += ["Attention by length of the texts:", "", *table(
            ("type", "head", "tokens", "window", "engine", "forward", "peak", "copies", "backward", "peak", "copies"),
            [(*key, *cells(rows[key].get(0, {})), *cells(rows[key].get(1, {}))) for key in order])]
    rows = [(name, " ".join(arguments), milliseconds(entry["real_time"] * 1e-9), f"{entry['copies']:.2f}",
             f"{entry['peak']:.3f}" if "peak" in entry else "")
            for name, entries in measured.items() for arguments, entry in entries]
    return [*out, "The others; arguments as in `tests/bench/kernels_bench.cpp`:", "",
            *table(("kernel", "arguments", "ms", "copies", "peak"), rows)]


def training_table(part):
    if part is None:
        return ["## Quick start", "", "Not run.", ""]
    rows = []
    for name, t in part["training"].items():
        if is_error(t):
            rows.append((name, t["error"], *[""] * 5))
            continue
        scores = t["scores"]
        recall = [f"{100 * scores[way]['recall@1']:.1f}" if not is_error(scores) else scores["error"]
                  for way in ("query_to_document", "document_to_query")]
        rows.append((name, *recall, t["steps"], milliseconds(t["step_seconds"]), giga(t["peak_gpu_bytes"]), t["state"]))
    return ["## Quick start", "", "Trained on the device by one rank; its checkpoint evaluated on the CPU. R@1 in %, "
            "queries to documents and back.", "",
            *table(("weights and momentum", "R@1", "R@1 back", "steps", "ms a step", "peak, GB", "state"), rows)]


def peers_section(part, folder):
    head = ["## Against sentence-transformers", ""]
    if part is None:
        return [*head, "Not run.", ""]
    name = os.path.basename(folder)
    return [*head, f"[{name}/peers.md]({name}/peers.md) has the ratios; both sides on the same GPU in one run.", ""]


def report(folder):
    parts = {}
    for name in PARTS:
        path = os.path.join(folder, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                parts[name] = json.load(file)
    if not parts:
        raise SystemExit(f"{folder} holds no {' nor '.join(name + '.json' for name in PARTS)}")
    measured = parts.get("benchmarks")
    anything = measured or parts.get("training")
    name = os.path.basename(os.path.abspath(folder))
    out = [f"# Measured: {name}", "", "Written by `tests/bench/device_report.py` from the files of "
           f"[{name}/]({name}/), which `launch/gpu-check.sh` wrote ([gpu.md](../gpu.md) says how).", ""]
    if anything:
        machine = anything["machine"]
        gpus = anything["doctor"].get("gpu", {}).get("gpus", [])
        out += [f"Device: {', '.join(gpus) or 'no GPU'}; {machine['processor']}, {machine['cores']} cores. "
                f"Libraries: {anything['doctor'].get('gpu', {}).get('libraries') or 'no GPU back end'}. "
                f"nvidia-smi: {machine['nvidia_smi']}. Date: {machine['date']}. "
                f"Load average before: {machine['load_average_before']}.", ""]
        if anything["device"] == "cpu":
            out += ["**No GPU was measured: this ran on the CPU and shows that the commands work, nothing of a GPU.**",
                    ""]
        if anything["small"]:
            out += ["**Small sizes: the figures mean nothing.**", ""]
    if measured:
        out += floors(measured["steps"], measured["kernels"])
        out += step_tables(measured["steps"])
        out += update_table(measured["steps"])
        out += profile_tables(measured["profiles"], measured["steps"])
        out += loss_table(measured["loss"])
        out += kernel_tables(measured["kernels"])
    else:
        out += ["## Training steps", "", "Not run.", ""]
    out += training_table(parts.get("training"))
    out += peers_section(parts.get("peers"), folder)
    out += checks("tests", parts.get("tests"))
    out += checks("sanitizer", parts.get("sanitizer"))
    return "\n".join(out).rstrip() + "\n"


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    folder = os.path.abspath(sys.argv[1])
    text = report(folder)
    document = sys.argv[2] if len(sys.argv) == 3 else folder + ".md"
    with open(document, "w", encoding="utf-8") as file:
        file.write(text)
    print(document)


if __name__ == "__main__":
    main()
