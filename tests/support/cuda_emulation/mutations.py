"""Defects put into the kernels, one at a time: the tests over emulated GPUs have to find each.

mutations.py OUT SOURCES BUILD COMPILE_COMMANDS TEST LIBRARY OBJECT...
"""
import json
import os
import shlex
import shutil
import subprocess
import sys

# What it is, the file of kernels/cuda with it, the kernel's source, what stands there and what stands
# there instead, and the tests that have to fail.
MUTATIONS = [
    ("attention bf16: the halves of B swapped", "attention_bf16.cuh", "attention_bf16.cu",
     "mma_bf16(a, b[0], b[1], c[0]);", "mma_bf16(a, b[1], b[0], c[0]);", "*Attention*Definition/cuda_bf16"),
    ("attention bf16: the tile is not waited for", "attention_bf16.cuh", "attention_bf16.cu",
     "    wait_for_copies();\n    __syncthreads();  // the tile is there, and the one before has been read",
     "    wait_for_copies();", "*Attention*Definition/cuda_bf16"),
    ("attention bf16: row sums read before all is written", "attention_bf16.cu", "attention_bf16.cu",
     "    __syncthreads();  // the sums are there", "", "*Attention*Definition/cuda_bf16"),
    ("attention bf16: gradients of scores read before all is written", "attention_bf16.cu", "attention_bf16.cu",
     "    __syncthreads();  // dS is there", "", "*Attention*Definition/cuda_bf16"),
    ("attention bf16: keys written while they are read", "attention_bf16.cu", "attention_bf16.cu",
     "  __syncthreads();  // the keys have been read", "", "*Attention*Definition/cuda_bf16"),
    ("attention bf16: rows behind a text's end see its keys", "attention_bf16.cuh", "attention_bf16.cu",
     "end = own < n ? min(own + window + 1, n) : 0;", "end = min(own + window + 1, n);",
     "*Attention*cuda_bf16"),
    ("attention: one key too many", "attention.cu", "attention.cu",
     "p[i][j] = key < n && a.sees(row, key) ? a.scale * p[i][j] : nothing;",
     "p[i][j] = key <= n && a.sees(row, key) ? a.scale * p[i][j] : nothing;",
     "*Attention*Definition/cuda_f32"),
    ("attention: tiles written while they are read", "attention.cu", "attention.cu",
     "    __syncthreads();  // the tiles before have been read\n    load_part<Tile>(a, at, head, 0, first, q);",
     "    load_part<Tile>(a, at, head, 0, first, q);", "*Attention*Definition/cuda_f32"),
    ("sums of a block: its parts written again too early", "backend.cuh", "contrastive.cu",
     "sum += parts[w];\n  __syncthreads();", "sum += parts[w];", "*Contrastive*cuda_f32"),
    ("contrastive: the last column of a panel is never masked", "contrastive.cu", "contrastive.cu",
     "tile.out.columns[k] < of_panel + kPanelColumns;", "tile.out.columns[k] < of_panel + kPanelColumns - 1;",
     "*Contrastive*cuda_f32"),
    ("contrastive: a block of rows left out of the columns' sums", "contrastive.cu", "contrastive.cu",
     "partial.column_sum + j, down, n,", "partial.column_sum + j, down > 1 ? down - 1 : down, n,",
     "*Contrastive*cuda_f32"),
    ("contrastive: the maxima of blocks of rows in another order than their sums", "contrastive.cu", "contrastive.cu",
     "partial.column_top[blockIdx.y * tile.n + column]",
     "partial.column_top[(gridDim.y - 1 - blockIdx.y) * tile.n + column]", "*Contrastive*cuda_f32"),
    ("contrastive: factors of another column", "contrastive.cu", "contrastive.cu",
     "exp(z - tops[q]) * factors[q]", "exp(z - tops[q]) * factors[0]", "*Contrastive*cuda_f32"),
    ("embedding: every token adds to its id's row", "embedding.cu", "embedding.cu",
     "if (follows[t] || id < 0", "if (id < 0", "*Embedding*cuda_f32"),
    ("embedding: positions one token late", "embedding.cu", "embedding.cu",
     "if (cu[s] + p < cu[s + 1]) sum +=", "if (cu[s] + p <= cu[s + 1]) sum +=", "*Embedding*cuda_f32"),
    ("norm: the last column left out of a sum", "norm.cu", "norm.cu",
     "for (int64_t j = lane; j < statistics_width; j += kLanes) sum +=",
     "for (int64_t j = lane; j < statistics_width - 1; j += kLanes) sum +=", "*Norm*cuda_f32"),
    ("norm: half of a warp's sum", "norm.cu", "norm.cu",
     "for (int offset = kLanes / 2; offset > 0;", "for (int offset = kLanes / 2; offset > 1;",
     "*Norm*cuda_f32"),
    ("sums down columns: read before all is written", "column_sums.cuh", "norm.cu",
     "  __syncthreads();\n  if (line != 0", "  if (line != 0", "*Norm*cuda_f32"),
    ("optimizer: the last element of a piece left out", "pieces.cuh", "optimizer_update.cu",
     "const int64_t end = first + kPieceElements;", "const int64_t end = first + kPieceElements - 1;",
     "*Update*cuda_f32:*Optimizer*cuda_f32"),
    ("rows: the first ones instead of those asked for", "rows.cu", "rows.cu",
     "    T* row = x + rows[k] * width;\n    const A factor", "    T* row = x + k * width;\n    const A factor",
     "*Rows*cuda_f32"),
    ("dropout: lanes of a Philox block in another order", "elementwise.cu", "elementwise.cu",
     "p.v[lane / 2] >> (16 * (lane % 2))", "p.v[lane / 2] >> (16 * (1 - lane % 2))",
     "*Elementwise*cuda_f32"),
]


def text_of(result):
    return result.stdout.decode(errors="replace")


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def main():
    out, sources, build, commands_file, test, library, *objects = sys.argv[1:]
    here = os.path.dirname(os.path.abspath(__file__))
    with open(commands_file, encoding="utf-8") as file:
        commands = {os.path.basename(c["file"]): c for c in json.load(file)
                    if "amur_cuda_emulated" in c["command"]}
    not_found = []
    for number, (what, mutated, source, old, new, tests) in enumerate(MUTATIONS):
        folder = os.path.join(out, str(number))
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("kernels/cuda", "src/app", "tests/unit/kernels"):
            os.makedirs(os.path.join(folder, name))
        for name in {mutated, source}:
            target = os.path.join(folder, "kernels/cuda", name + (".cpp" if name == source else ""))
            change = ["--replace", old, new] if name == mutated else []
            subprocess.run([sys.executable, f"{here}/convert.py", f"{sources}/{name}", target,
                            *change], check=True)
        command = shlex.split(commands[source + ".cpp"]["command"])
        for flag, value in (("-o", f"{folder}/kernel.o"), ("-c", f"{folder}/kernels/cuda/{source}.cpp"),
                            ("-MF", f"{folder}/kernel.d")):
            if flag in command:
                command[command.index(flag) + 1] = value
        # Before the converted headers, behind what stands in for CUDA's.
        first = next(i for i, word in enumerate(command) if word.startswith("-I"))
        command[first + 1:first + 1] = [f"-I{folder}"]
        compiled = run([*command, "-O1", "-w"], cwd=build)
        if compiled.returncode:
            sys.exit(f"{what}: does not compile\n{text_of(compiled)}")
        rest = [o for o in objects if os.path.basename(o) != f"{source}.cpp.o"]
        if len(rest) != len(objects) - 1:
            sys.exit(f"{source} is not among the objects of the module")
        compiler = next(word for word in command if "ccache" not in word)
        linked = run([compiler, "-shared", "-o", f"{folder}/src/app/libamur_cuda.so",
                      f"{folder}/kernel.o", *rest, library, "-lfmt"])
        if linked.returncode:
            sys.exit(f"{what}: does not link\n{text_of(linked)}")
        program = f"{folder}/tests/unit/kernels/test_kernels"
        os.link(test, program)
        result = run([program, f"--gtest_filter={tests}", "--gtest_fail_fast"])
        said = text_of(result)
        reason = next((line for line in said.splitlines()
                       if line.startswith("emulated GPU: ") or "which exceeds" in line
                       or "Failure" in line), "")
        found = result.returncode != 0 and "[ RUN      ]" in said
        print(f"{'found' if found else 'NOT FOUND'}: {what}: {os.path.basename(reason)[:160]}", flush=True)
        if not found:
            not_found.append(what)
        shutil.rmtree(folder)
    if not_found:
        sys.exit(f"{len(not_found)} of {len(MUTATIONS)} were not found")


if __name__ == "__main__":
    main()
