"""A run whose job ends soon stops in time, with a checkpoint where there is time for one."""
import os
import re
import shutil
import signal
import subprocess
import time

import support

BASE = {"parallel.threads": 1, "eval.every_steps": 0, "data.eval_limit": 0,
        "train.schedule_steps": 1000}


class TimeLimit(support.EndToEnd):
    def test_stops_before_the_end(self):
        end = time.time() + 12
        outcome = self.train("run", BASE | {"train.steps": 100000}, ranks=2, code=75,
                             env=os.environ | {"SLURM_JOB_END_TIME": str(int(end))})
        self.assertLess(time.time(), end)
        found = re.search(r"stopped by the time limit of the job at step (\d+)", outcome.err)
        self.assertTrue(found, outcome)
        self.assertTrue(os.path.exists(support.checkpoint(self.path("run"), int(found.group(1)))))

    def test_a_step_that_cannot_be_finished(self):
        """In the middle of pass 2, with no time left: away at once, with the checkpoint before."""
        values = BASE | {"model.hidden": 256, "model.ffn": 1024, "train.batch_size": 600,
                         "train.chunk_tokens": 64, "train.activation_budget": "0"}
        self.train("two-steps", values | {"train.steps": 2}, ranks=2)
        took = support.metrics(self.path("two-steps"))[1]
        # The middle of pass 2 by that step; a busy machine needs another time, which is searched.
        pause = took["seconds_pass1"] + took["seconds_loss"] + 0.5 * took["seconds_pass2"]
        for _ in range(20):
            shutil.rmtree(self.path("run"), ignore_errors=True)
            shutil.copytree(self.path("two-steps"), self.path("run"), symlinks=True)
            with open(self.path("messages"), "w", encoding="utf-8") as messages:
                job = subprocess.Popen(
                    support.command(self.train_args("run", values | {"train.steps": 1000}), 2),
                    stdout=messages, stderr=messages, cwd=self.folder, start_new_session=True,
                    env=os.environ | {"SLURM_JOB_END_TIME": "1"})
            support.wait_until(lambda: "resumed from" in self.messages(), pause=0.005)
            time.sleep(pause)
            os.kill(job.pid, signal.SIGUSR1)
            self.assertEqual(job.wait(30), 75, self.messages())
            if "at step 2;" in self.messages() or "this step cannot" in self.messages():
                self.assertEqual(support.checkpoints(self.path("run")), ["step-00000002.h5"])
            self.assertRegex(self.messages(), "the same command goes on from (the newest complete "
                                              "checkpoint in )?run/checkpoints")
            if "this step cannot be finished" in self.messages():
                break
            pause *= 1.25 if "at step 2;" in self.messages() else 0.9
        self.assertEqual(self.messages().count("this step cannot be finished before the job ends: "
                                               "leaving at once"), 1, self.messages())

    def messages(self):
        with open(self.path("messages"), encoding="utf-8") as told:
            return told.read()

    def test_asking_where_it_is(self):
        """SIGUSR2: every rank tells its phase and its last collectives, and the run goes on."""
        job = self.start_in(*self.train_args("run", BASE | {"train.steps": 100000}), ranks=2)
        support.wait_until(lambda: len(support.metrics(self.path("run"))) >= 3)
        os.kill(job.pid, signal.SIGUSR2)
        time.sleep(1.5)
        before = len(support.metrics(self.path("run")))
        support.wait_until(lambda: len(support.metrics(self.path("run"))) > before)
        os.kill(job.pid, signal.SIGUSR1)
        outcome = support.finish(job)
        self.assertEqual(outcome.code, 75, outcome)
        self.assertEqual(len(re.findall(r"SIGUSR2: in phase '.*', (waiting in|after) ", outcome.err)),
                         2, outcome)
        self.assertEqual(outcome.err.count("last collectives of this rank"), 2)


if __name__ == "__main__":
    support.main()
