"""Ranks killed at random instants: the job is gone at once and nothing is lost.

test_kill.py [ROUNDS]
"""
import os
import random
import re
import signal
import sys
import time

import support

ROUNDS = 6
FAR = 100000  # steps that no turn comes to
# A position table much longer than any text makes checkpoints large and steps cheap.
BIG = {"parallel.threads": 1, "model.hidden": 64, "model.max_length": 20000,
       "checkpoint.every_steps": 2, "checkpoint.keep": 2, "train.schedule_steps": FAR,
       "train.batch_size": 32, "data.eval_limit": 20}


class Kill(support.EndToEnd):
    values, rounds = BIG, ROUNDS

    def ended(self, job):
        """The job must be gone, with all its processes, within seconds."""
        pids = support.processes_of(job.pid)
        support.wait_until(lambda: not any(map(support.alive, pids[1:])), 10)
        try:
            outcome = support.finish(job, limit=10)
        except AssertionError as stayed:
            if support.KILLED_IN_GREETING not in str(stayed):
                raise
            return support.Outcome(job.returncode, "", str(stayed), 10)
        self.assertNotEqual(outcome.code, 0, outcome)
        return outcome

    def complete(self, run_dir):
        """The steps of checkpoints that stand under a final name: each must be sound."""
        steps = []
        folder = self.path(run_dir, "checkpoints")
        for name in support.checkpoints(self.path(run_dir)) if os.path.isdir(folder) else []:
            outcome = self.run_in("inspect", os.path.join(folder, name), "--verify", "--brief",
                                  ranks=0)
            self.assertEqual(outcome.code, 0, outcome)
            steps.append(int(re.fullmatch(r"step-(\d+)\.h5", name).group(1)))
        return steps

    def wait_for_write(self, before, count):
        """Until `count` checkpoint writes have begun that are not among `before`."""
        seen = set(before)

        def enough():
            seen.update(self.writes())
            return len(seen - before) >= count

        support.wait_until(enough, pause=0.0005)

    def writes(self):
        """Temporary files of checkpoints, each with what tells it from an earlier one of its name."""
        found = set()
        for path in support.temporary_files(self.path("run", "checkpoints")):
            try:
                found.add((path, os.stat(path).st_ino))
            except FileNotFoundError:
                pass
        return found

    def test_random_instants(self):
        draw = random.Random(20)
        inside_write = 0
        for turn in range(self.rounds):
            before = max(self.complete("run"), default=0)
            stale = self.writes()
            job = self.start_in(*self.train_args("run", self.values | {"train.steps": FAR}), ranks=2)
            if turn % 2:
                self.wait_for_write(stale, draw.randint(1, 3))
                time.sleep(draw.random() * 0.03)
            else:
                support.wait_until(lambda: len(support.ranks_of(job)) == 2)
                time.sleep(draw.random() * 2)
            victims = support.ranks_of(job)
            self.assertEqual(len(victims), 2)
            for pid in victims if turn % 3 == 2 else [draw.choice(victims)]:
                support.kill(pid)
            outcome = self.ended(job)
            inside_write += bool(self.writes() - stale)
            if before and "resumed from" in outcome.err:
                self.assertRegex(outcome.err, rf"resumed from .* at step {before}\b")
            self.assertGreaterEqual(max(self.complete("run"), default=0), before)
        self.assertGreaterEqual(
            inside_write, self.rounds // 4,
            f"{inside_write} of {self.rounds} kills were inside a checkpoint write")
        last = max(self.complete("run"), default=0) + 4
        print(f"{inside_write} of {self.rounds} kills inside a write, {last} steps", file=sys.stderr)
        self.train("run", self.values | {"train.steps": last}, ranks=2)
        self.assertEqual(support.temporary_files(self.path("run")), [])
        # The run that was killed so often is the one that was never killed.
        self.train("straight", BIG | {"train.steps": last, "checkpoint.every_steps": 0}, ranks=2,
                   limit=120)
        self.assertEqual(support.columns(self.path("run")), support.columns(self.path("straight")))
        self.assertEqual([line["step"] for line in support.metrics(self.path("run"))],
                         list(range(1, last + 1)))

    def test_truncated_checkpoint(self):
        """The run goes on from the one before, and says so; the damaged one is refused."""
        values = {"train.steps": 12, "train.schedule_steps": 20, "checkpoint.every_steps": 4,
                  "parallel.threads": 1}
        self.train("run", values, ranks=2)
        newest = support.checkpoint(self.path("run"), 12)
        os.truncate(newest, os.path.getsize(newest) // 2)
        for command in (["eval", newest], ["inspect", newest]):
            self.refuses(self.run_in(*command, ranks=2), 4, "step-00000012.h5")
        outcome = self.train("run", values | {"train.steps": 14}, ranks=2)
        self.assertRegex(outcome.err, r"passed over: .*step-00000012\.h5")
        self.assertRegex(outcome.err, r"resumed from .*step-00000008\.h5 at step 8")
        self.assertEqual([line["step"] for line in support.metrics(self.path("run"))],
                         list(range(1, 15)))


class KillBesideTraining(Kill):
    """Checkpoints that are written while training goes on."""

    values, rounds = BIG | {"checkpoint.async": "on"}, (ROUNDS + 1) // 2
    test_truncated_checkpoint = None


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Kill.rounds = int(sys.argv.pop(1))
        KillBesideTraining.rounds = (Kill.rounds + 1) // 2
    support.main()
