"""Defects put into the kernels, one at a time: the tests over emulated GPUs have to find each.

mutations.py OUT SOURCES BUILD COMPILE_COMMANDS TEST LIBRARY OBJECT...
"""
import concurrent.futures
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
     "tile.out.columns[k] < column + width;", "tile.out.columns[k] < column + width - 1;",
     "*Contrastive*cuda_f32"),
    ("contrastive: rows are read before the warp has masked them", "contrastive.cu", "contrastive.cu",
     "  __syncwarp();\n  return own;", "  return own;", "*Contrastive*cuda_f32"),
    ("contrastive: a part left out of the sums", "contrastive.cu", "contrastive.cu",
     "      const double part = parts.sum[k * n + i];",
     "      const double part = k > 0 && k + 1 == count ? 0 : parts.sum[k * n + i];",
     "*Contrastive*cuda_f32"),
    ("contrastive: the maxima of parts in another order than their sums", "contrastive.cu", "contrastive.cu",
     "exp_between(parts.maximum[k * n + i], top)",
     "exp_between(parts.maximum[(count - 1 - k) * n + i], top)", "*Contrastive*cuda_f32"),
    ("embedding: every token adds to its id's row", "embedding.cu", "embedding.cu",
     "if (key == held || key == before || key == later)", "if (key == held || key == later)",
     "*Embedding*cuda_f32"),
    ("embedding: tokens of one id in another order", "embedding.cu", "embedding.cu",
     "to + __popc(all & ((1u << lane) - 1))", "to + __popc(all & ~((2u << lane) - 1))",
     "*Embedding*cuda_f32"),
    ("embedding: a warp adds before it has what the one before it added", "embedding.cu", "embedding.cu",
     "        pass();\n      }\n      __syncthreads();", "        pass();\n      }", "*Embedding*cuda_f32"),
    ("embedding: positions one token late", "embedding.cu", "embedding.cu",
     "return t < cu[s + 1] ?", "return t <= cu[s + 1] ?", "*Embedding*cuda_f32"),
    ("norm: the last column left out of a sum", "norm.cu", "norm.cu",
     "if (counted(e)) sum +=", "if (counted(e + 1)) sum +=", "*Norm*cuda_f32"),
    ("norm: a residual forgotten where rows are long", "norm.cu", "norm.cu",
     "      return load_pack<pack>(y + row + j);", "      return load_pack<pack>(addends.x + row + j);",
     "*Norm*cuda_f32"),
    ("half of a warp's sum", "backend.cuh", "norm.cu", "offset /= 2)\n    value +=",
     "offset /= 4)\n    value +=", "*Norm*cuda_f32"),
    ("packs: the two of a pair swapped", "packs.cuh", "norm.cu", "(pairs.v[i] << 16);",
     "(pairs.v[i] & 0xffff0000u);", "*Norm*cuda_bf16"),
    ("sums down columns: a lane's columns in another order", "column_sums.cuh", "elementwise.cu",
     "at % pack * kLine + at / pack", "at / kLanes * kLine + at % kLanes", "*Elementwise*cuda_f32"),
    ("rotary: angles of the token, not of its place in the text", "attention.cu", "attention.cu",
     "(t - cu[sequence]) * half", "t * half", "*Rotary*cuda_f32"),
    ("held rows: warps add at once", "held_rows.cuh", "norm.cu",
     "    }\n    __syncthreads();\n  }", "    }\n  }\n  __syncthreads();", "*Norm*cuda_f32"),
    ("packs: at any address", "packs.cuh", "norm.cu",
     "at_multiples_of<16>(addresses...)", "at_multiples_of<1>(addresses...)",
     "*Norm*cuda_f32"),
    ("sums down columns: read before all is written", "column_sums.cuh", "norm.cu",
     "  __syncthreads();\n  if (line != 0", "  if (line != 0", "*Norm*cuda_f32"),
    ("optimizer: the last element of a piece left out", "pieces.cuh", "optimizer_update.cu",
     "const int64_t end = first + kPieceElements;", "const int64_t end = first + kPieceElements - 1;",
     "*Update*cuda_f32:*Optimizer*cuda_f32"),
    ("rows: the first ones instead of those asked for", "rows.cu", "rows.cu",
     "T* row = x + list[k].row * width;", "T* row = x + k * width;", "*Rows*cuda_f32"),
    ("optimizer: the noise of a pack in another order", "optimizer_update.cu", "optimizer_update.cu",
     "(p.v[k / 2] >> (16 * (k % 2)))", "(p.v[k / 2] >> (16 * (1 - k % 2)))", "*State*cuda_bf16"),
    ("dropout: lanes of a Philox block in another order", "dropout.cuh", "elementwise.cu",
     "lane % 2 == 0 ? word", "lane % 2 != 0 ? word", "*Elementwise*cuda_f32"),
]


def text_of(result):
    return result.stdout.decode(errors="replace")


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def try_one(number, mutation, arguments):
    """Whether the tests find it."""
    out, sources, build, commands, test, library, objects = arguments
    what, mutated, source, old, new, tests = mutation
    here = os.path.dirname(os.path.abspath(__file__))
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
    linked = run([compiler, "-shared", "-fsanitize=alignment", "-o", f"{folder}/src/app/libamur_cuda.so",
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
    shutil.rmtree(folder)
    return found


def main():
    out, sources, build, commands_file, test, library, *objects = sys.argv[1:]
    with open(commands_file, encoding="utf-8") as file:
        commands = {os.path.basename(c["file"]): c for c in json.load(file)
                    if "amur_cuda_emulated" in c["command"]}
    arguments = (out, sources, build, commands, test, library, objects)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda m: try_one(*m, arguments), enumerate(MUTATIONS)))
    not_found = [mutation[0] for mutation, there in zip(MUTATIONS, found) if not there]
    if not_found:
        sys.exit(f"{len(not_found)} of {len(MUTATIONS)} were not found")


if __name__ == "__main__":
    main()
