"""launch/slurm under a real Slurm of four nodes: time limit, requeue and resume; dead nodes;
preemption; arrays.
"""
import os
import re
import time

import numpy as np
import hosts
import support

STEPS = 120
VALUES = {"parallel.threads": 1, "train.steps": STEPS, "eval.every_steps": 0, "data.eval_limit": 0,
          "checkpoint.keep": 2, "runtime.liveness_seconds": 6}


class Slurm(hosts.OnHosts):
    count = 5  # a controller and four nodes

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        hosts.script("slurm.sh", cls.place, "up")
        cls.nodes = cls.hosts[1:]

    def setUp(self):
        super().setUp()
        self.environment["SLURM_CONF"] = os.path.join(self.place, "slurm", "slurm.conf")
        self.addCleanup(self.slurm, "scancel", "--user", "root", "--full")

    def sweep(self):
        """The daemons of Slurm stay until the hosts go."""

    def slurm(self, *command, **options):
        return self.call(self.hosts[0], "timeout", "60", *command, **options)

    def submit(self, run_dir, values, *flags):
        """Job id and path of the log."""
        told = self.slurm(os.path.join(hosts.LAUNCH, "slurm", "amur-submit"), "small.yaml",
                          "--amur", support.PROGRAM, "--name", run_dir.replace("{task}", "task"),
                          "--run-dir", run_dir, *flags, *support.settings(values)).out
        found = re.fullmatch(r"job (\d+), log (.*)\n", told)
        self.assertTrue(found, told)
        return found.groups()

    def state(self, job):
        """What Slurm says of a job: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        text = self.slurm("scontrol", "show", "job", "--oneliner", job).out
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def log(self, path):
        try:
            with open(path, encoding="utf-8") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def wait_for(self, job, path, condition, limit=90):
        try:
            support.wait_until(condition, limit, pause=0.3)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.state(job)}\n{self.log(path)}") from None

    def wait_for_end(self, job, path):
        def over():
            state = self.state(job)["JobState"]
            self.assertNotIn(state, ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), self.log(path))
            return state == "COMPLETED"

        self.wait_for(job, path, over)

    def same(self, a, b):
        """Every data set below /model, /optimizer and /state has the same bits."""
        left, right = (support.datasets(support.checkpoint(self.path(run), STEPS)) for run in (a, b))
        self.assertEqual(left.keys(), right.keys())
        self.assertGreater(len(left), 10)
        return all(np.asarray(left[name]).tobytes() == np.asarray(right[name]).tobytes()
                   for name in left)

    def test_time_limit(self):
        """USR1 before the limit: checkpoint, requeue, resume to the same bits, by either launcher."""
        self.on_hosts("rate", "2mbit")  # steps that take their time
        jobs = {launcher: self.submit(launcher, VALUES, "--launcher", launcher, "--nodes", "4",
                                      "--time", "2", "--warn", "110") for launcher in ("srun", "mpirun")}
        for job, log in jobs.values():
            self.wait_for(job, log, lambda log=log: "is started again" in self.log(log), 150)
        self.on_hosts("rate", "none")
        for launcher, (job, log) in jobs.items():
            self.slurm("scontrol", "update", f"job={job}", "TimeLimit=10")  # no second warning
        for launcher, (job, log) in jobs.items():
            self.wait_for_end(job, log)
            text = self.log(log)
            stop = re.search(r"stopped by SIGUSR1 at step (\d+)", text)
            # On a busy machine even before the first step.
            self.assertTrue(stop and int(stop.group(1)) < STEPS, text)
            self.assertIn(f"{launcher}: interrupted (75): it is started again", text)
            self.assertRegex(text, rf"job {job}, start 1, on ")
            self.assertRegex(text, rf"resumed from .* at step {stop.group(1)}\n")
            self.assertEqual([line["step"] for line in support.metrics(self.path(launcher))],
                             list(range(1, STEPS + 1)))

        self.slurm("srun", "--nodes=4", "--ntasks-per-node=1", support.PROGRAM,
                   *self.train_args("straight", VALUES))
        self.slurm("srun", "--nodes=4", "--ntasks-per-node=1", support.PROGRAM,
                   *self.train_args("other", VALUES | {"train.seed": 4}))
        for launcher in jobs:
            self.assertTrue(self.same("straight", launcher))
        self.assertFalse(self.same("straight", "other"))  # the comparison sees another run

    def test_dead_node(self):
        """A node that dies: the job goes on by itself on those that are left."""
        self.on_hosts("rate", "8mbit")
        steps = 30
        values = VALUES | {"train.steps": steps, "checkpoint.every_steps": 5}
        job, log = self.submit("dead", values, "--nodes", "2-4", "--time", "10")
        self.wait_for_step("dead", 8)
        self.wait_for_checkpoint("dead")
        victim = self.nodes[2]
        self.on_hosts("kill", victim)
        killed = time.monotonic()
        self.addCleanup(hosts.script, "slurm.sh", self.place, "start", victim)
        self.addCleanup(self.on_hosts, "start", victim)
        self.wait_for(job, log, lambda: "is started again" in self.log(log))
        noticed = time.monotonic() - killed
        self.on_hosts("rate", "none")
        self.wait_for_end(job, log)
        print(f"a node died: noticed after {noticed:.1f} s, the run was done after "
              f"{time.monotonic() - killed:.1f} s")
        text = self.log(log)
        self.assertIn("\n4 ranks", text)
        self.assertRegex(text, rf"rank 2/4 .*{victim} has not been heard of")
        self.assertRegex(text, rf"job {job}, start [12], on ")
        self.assertRegex(text, r"resumed from .* at step \d+\n")
        self.assertIn("\n3 ranks", text)
        self.assertEqual([line["step"] for line in support.metrics(self.path("dead"))],
                         list(range(1, steps + 1)))

    def test_preempted_and_orphaned(self):
        """Preempted by a job that matters more, then without the node of its own script: Slurm puts
        the job back into the queue, and it goes on from its newest checkpoint."""
        self.on_hosts("rate", "8mbit")
        steps = 40
        values = VALUES | {"train.steps": steps, "checkpoint.every_steps": 3}
        job, log = self.submit("orphan", values, "--nodes", "2-4", "--time", "10")
        self.wait_for_step("orphan", 7)
        self.wait_for_checkpoint("orphan")
        self.slurm("sbatch", "--partition=urgent", "--nodes=4", "--ntasks-per-node=2",
                   "--output=/dev/null", "--wrap", "sleep 1")
        self.wait_for(job, log, lambda: f"job {job}, start 1, on" in self.log(log))
        first = len(support.metrics(self.path("orphan")))
        self.assertLess(first, steps - 12)
        self.wait_for_step("orphan", first + 5)
        victim = self.state(job)["BatchHost"]
        self.on_hosts("kill", victim)
        self.addCleanup(hosts.script, "slurm.sh", self.place, "start", victim)
        self.addCleanup(self.on_hosts, "start", victim)
        self.wait_for(job, log, lambda: f"job {job}, start 2, on" in self.log(log))
        self.on_hosts("rate", "none")
        self.wait_for_end(job, log)
        text = self.log(log)
        starts = text.split(f"job {job}, start ")
        self.assertEqual(len(starts), 4, text)
        for i, ranks in enumerate((4, 4, 3), 1):
            self.assertIn(f"\n{ranks} ranks", starts[i])
        for start in starts[2:]:
            self.assertRegex(start, r"resumed from .* at step \d+\n")
        self.assertEqual([line["step"] for line in support.metrics(self.path("orphan"))],
                         list(range(1, steps + 1)))

    def test_array(self):
        """One run for each number of the array, each with its own options and log."""
        script = self.slurm(os.path.join(hosts.LAUNCH, "slurm", "amur-submit"), "small.yaml",
                            "--amur", support.PROGRAM, "--dry-run").out
        self.assertNotIn("--array", script)
        self.assertNotRegex(script, "@[a-z_]+@")
        job, log = self.submit("task-{task}", {"train.steps": 3, "train.seed": "{task}"},
                               "--array", "1-2", "--nodes", "1", "--ranks", "2")
        self.assertIn(f"-{job}_%a.log", log)
        for task in (1, 2):
            path = log.replace("%a", str(task))
            support.wait_until(lambda path=path: "checkpoint task-" in self.log(path), 60)
            self.assertIn("\n2 ranks", self.log(path))
        losses = [support.metrics(self.path(f"task-{task}"))[-1]["loss"] for task in (1, 2)]
        self.assertNotEqual(*losses)


if __name__ == "__main__":
    support.main()
