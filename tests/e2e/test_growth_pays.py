"""tests/bench/growth_pays.py on small data: the runs, going on with them, tables and plots."""
import json
import os
import subprocess
import sys
import unittest
import xml.etree.ElementTree

import support

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench")
sys.path.insert(0, BENCH)
import growth_pays  # noqa: E402
import growth_report  # noqa: E402

LARGE, SMALL, GROWN = "pairs/1/large", "pairs/1/small", "pairs/1/grown at 8"


class GrowthPays(support.EndToEnd):
    def bench(self, *args, code=0):
        done = subprocess.run([sys.executable, os.path.join(BENCH, "growth_pays.py"), *args],
                              cwd=self.folder, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stderr

    def test_runs_and_report(self):
        run = ("run", support.PROGRAM, self.folder, "--plan", "tiny")
        self.assertEqual(self.bench(*run).count("done: "), 4)
        # What is there is not made again; what is missing is, and gives the same.
        grown = self.path("pairs", "1", "grown-at-8")
        before = support.columns(grown)
        os.remove(grown + ".json")
        with open(grown + ".yaml", encoding="utf-8") as file:
            config = file.read()
        self.write(grown + ".yaml", config.replace("0.005", "0.004"))
        self.assertIn("another configuration", self.bench(*run, code=1))
        self.write(grown + ".yaml", config)
        self.assertEqual(self.bench(*run), f"done: {GROWN}, 0 left\n")
        self.assertEqual(support.columns(grown), before)

        out = self.path("out")
        self.bench("report", self.folder, out)
        with open(os.path.join(out, "growth.json"), encoding="utf-8") as file:
            rows = {row["name"]: row for row in json.load(file)["runs"]}
        self.assertEqual(len(rows), 4)
        flops = {name: [line["model_flops"] for line in support.metrics(self.path("pairs", "1", name))]
                 for name in ("large", "small", "grown-at-8")}
        self.assertAlmostEqual(rows[LARGE]["final_flops"], sum(flops["large"]))
        # Eight small steps, eight large ones: all of them counted, and on the same samples.
        self.assertAlmostEqual(rows[GROWN]["final_flops"],
                               sum(flops["small"][:8]) + sum(flops["grown-at-8"]))
        self.assertEqual(flops["grown-at-8"][:4], flops["large"][8:])
        self.assertLessEqual(rows[GROWN]["max_cosine_difference"], 5e-6)
        self.assertEqual(rows[LARGE]["flops_saved"], 0)
        with open(os.path.join(out, "growth.md"), encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(text.count("| pairs | grown at 8 |"), 2)
        for name, lines in (("growth-pairs.svg", 4), ("growth-pairs-loss.svg", 3)):
            root = xml.etree.ElementTree.parse(os.path.join(out, name)).getroot()
            self.assertEqual(len(root.findall("{*}polyline")), lines)

    def test_costs_of_made_up_runs(self):
        """R@1 rises by 0.1 a step of the large model; the grown one starts where the small one is."""
        def write(name, steps, rise, begin=0, flops=4e12, **facts):
            folder = self.path(*name.split("/"))
            os.makedirs(folder)
            with open(folder + "/metrics.jsonl", "w", encoding="utf-8") as metrics, \
                    open(folder + "/evaluation.jsonl", "w", encoding="utf-8") as evaluations:
                for step in range(begin + 1, steps + 1):
                    metrics.write(json.dumps({"step": step, "loss": 1, "model_flops": flops,
                                              "cpu_seconds": 1}) + "\n")
                    recall = {"recall@1": rise(step)}
                    evaluations.write(json.dumps({"step": step, "query_to_document": recall,
                                                  "document_to_query": recall}) + "\n")
            data, seed, label = name.split("/")
            facts = {"name": name, "data": data, "seed": int(seed), "label": label, "steps": steps,
                     "parent": "", "moment": 0, "widen_cpu_seconds": 0, "size": {"hidden": 2}} | facts
            with open(folder + ".json", "w", encoding="utf-8") as file:
                json.dump(facts, file)

        write("d/1/large", 8, lambda s: s / 10)
        write("d/1/small", 4, lambda s: s / 10, flops=1e12, size={"hidden": 1})
        write("d/1/fast", 8, lambda s: min(0.9, 0.4 + 0.16 * (s - 4)), 4, parent="d/1/small", moment=4,
              widen_cpu_seconds=0.5)
        write("d/1/never", 8, lambda s: 0.7, 4, parent="d/1/small", moment=4)
        results = growth_report.Results(self.folder)
        rows = {name: results.row(run) for name, run in results.runs.items()}
        self.assertAlmostEqual(rows["d/1/large"]["step"], 8)
        # 0.8 lies halfway between steps 6 and 7: 4 small steps of 1 and 2.5 large ones of 4.
        self.assertAlmostEqual(rows["d/1/fast"]["step"], 6.5)
        self.assertAlmostEqual(rows["d/1/fast"]["flops"], 14e12)
        self.assertAlmostEqual(rows["d/1/fast"]["flops_saved"], 1 - 14 / 32)
        self.assertAlmostEqual(rows["d/1/fast"]["seconds"], 7.0)
        self.assertIsNone(rows["d/1/never"]["step"])
        self.assertNotIn("flops_saved", rows["d/1/never"])
        # The large model has 0.7 after 7 steps of 4; 0.9 never.
        self.assertAlmostEqual(rows["d/1/never"]["flops_saved_there"], 1 - 20 / 28)
        self.assertNotIn("flops_saved_there", rows["d/1/fast"])
        table = "".join(growth_report.ablation_table(growth_report.groups(rows.values())))
        self.assertIn("| never | 1 | 70.0 | -10.0 | 20 | reached by 0 of 1 | - | 28.6 |", table)

    def test_schedules(self):
        """The points of a schedule follow the cosine of a run from scratch."""
        points = growth_pays.cosine_points(200, 30, 450, 1)
        self.assertEqual(points[0], (199, 0.0))
        self.assertEqual(points[1], (230, 1.0))
        self.assertEqual(points[-1], (450, 0.05))
        self.assertEqual(growth_pays.cosine_points(200, 0, 450, 0.7)[0], (200, 0.7))
        for plan in growth_pays.PLANS.values():
            runs = growth_pays.runs_of(plan)
            for run in runs.values():
                if run.parent:
                    parent = runs[run.parent]
                    self.assertEqual(run.moment % parent.checkpoints, 0, run.name)
                    self.assertLessEqual(run.moment, parent.steps)


if __name__ == "__main__":
    support.main()
