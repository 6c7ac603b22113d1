"""What measures a GPU, on the CPU in sizes that mean nothing: programs, document, table of scaling."""
import json
import os
import re
import subprocess
import sys

import support

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench")
BUILD = os.path.normpath(os.path.join(os.path.dirname(support.PROGRAM), "..", ".."))


class DeviceBench(support.EndToEnd):
    def bench(self, script, *args, code=0):
        done = subprocess.run([sys.executable, os.path.join(BENCH, script), *map(str, args)], cwd=self.folder,
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def part(self, name, *args, code=0):
        self.bench("device_benchmarks.py", name, BUILD, "out", "--device", "cpu", "--small", *args, code=code)
        with open(self.path("out", name + ".json"), encoding="utf-8") as file:
            return json.load(file)

    def test_everything_on_the_cpu(self):
        found = self.part("benchmarks")
        for name, step in found["steps"].items():
            self.assertGreater(step["fraction"], 0, name)
            self.assertEqual(step["optimizer_bytes"] >= step["weight_bytes"] > 0, True, name)
            # The phases are all of the step, and none is counted twice.
            self.assertAlmostEqual(sum(step["phases"].values()) / step["seconds"], 1, delta=0.02)
        kept, dropped = found["steps"].values()
        self.assertEqual(kept["recomputed_chunks"], 0)
        self.assertEqual(dropped["recomputed_chunks"], dropped["chunks"])
        self.assertEqual([kept["mean_length"], kept["tokens_per_second"] > 0], [16, True])
        rounded, loss = found["loss"].values()
        # A query has nothing to do with its document, so the loss is above log 64, that of a blind guess.
        self.assertGreater(loss["loss"], 4.16)
        self.assertNotEqual(rounded["loss"], loss["loss"])
        self.assertAlmostEqual(rounded["loss"], loss["loss"], delta=0.01)
        self.assertIn("CPU", found["profiles"]["error"])
        self.part("training", "--config", self.path("small.yaml"))

        self.bench("device_report.py", "out")
        with open(self.path("out.md"), encoding="utf-8") as file:
            text = file.read()
        for words in ("No GPU was measured", "Small sizes", f"**{kept['fraction']:.3f}**", "| Tiger |", "R@1", "The whole of Tiger's update",
                      "## Against sentence-transformers\n\nNot run.", "## Sanitizer\n\nNot run."):
            self.assertIn(words, text)
        for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # of a table: as many cells as its head
            self.assertEqual(len({line.count("|") for line in lines.splitlines()}), 1, lines)

        table = self.bench("scaling.py", self.path("out", "benchmarks.json"), "--pairs", 16)
        self.assertIn("Measured without a GPU", table)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
                if re.match(r"\| (1|8|1024) \|.*\|.*\|.*\|.*\|.*\|.*\|.*\|", line)]
        self.assertGreaterEqual(len(rows), 6)
        for row in rows:
            seconds = [float(cell) for cell in row[2:8]]
            self.assertAlmostEqual(sum(seconds[:5]) / seconds[5], 1, delta=0.01)
            if row[0] == "1":
                self.assertEqual(seconds[2:4] + [float(row[9])], [0, 0, 1])

    def test_what_fails_is_said(self):
        """No GPU; no time; a program that is not there."""
        if "cuda:0" not in support.run("doctor").out:
            said = self.bench("device_benchmarks.py", "benchmarks", BUILD, "none", "--small", code=1)
            self.assertIn("no GPU can be used here: ", said)
            done = subprocess.run([os.path.join(BUILD, "tests", "bench", "amur_bench_training"), "step", "--device",
                                   "cuda"], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("--device cuda: ", done.stderr)
        late = self.part("benchmarks", "--limit", "0.5", code=1)
        self.assertIn("not run", json.dumps(late["steps"]))
        self.bench("device_report.py", "out")
        with open(self.path("out.md"), encoding="utf-8") as file:
            self.assertIn("not run: ", file.read())
        self.assertIn("no step and no loss", self.bench("scaling.py", self.path("out", "benchmarks.json"), code=1))

    def test_what_was_measured_is_kept(self):
        """A program of benchmarks that ends in the middle of a figure, beside others that are not there at all."""
        program = self.path("broken", "tests", "bench", "amur_bench_kernels")
        os.makedirs(os.path.dirname(program))
        with open(program, "w", encoding="utf-8") as file:
            file.write("""#!/bin/sh
echo '{"context": {"tokens": "8"}, "benchmarks": [{"name": "norm", "copies": 2}, {"name": "ge'
exit 3
""")
        os.chmod(program, 0o755)
        said = self.bench("device_benchmarks.py", "benchmarks", "broken", "out", "--device", "cpu", "--small", code=1)
        self.assertIn("No such file", said)
        with open(self.path("out", "benchmarks.json"), encoding="utf-8") as file:
            kernels = json.load(file)["kernels"]
        self.assertEqual([kernel["name"] for kernel in kernels["benchmarks"]], ["norm"] * len(kernels["problems"]))
        self.assertIn("exit code 3", "".join(kernels["problems"].values()))


if __name__ == "__main__":
    support.main()
