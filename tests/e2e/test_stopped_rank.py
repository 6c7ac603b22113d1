"""A rank of a real run that is stopped ends the job."""
import signal
import time

import support


class StoppedRank(support.EndToEnd):
    def test_stop_one_rank(self):
        for rank in (0, 2):
            name = f"run{rank}"
            job = self.start_in(*self.train_args(
                name, {"parallel.threads": 1, "train.steps": 100000, "runtime.liveness_seconds": 3,
                       "eval.every_steps": 0}), ranks=3)
            support.wait_until(lambda: len(support.metrics(self.path(name))) >= 5
                               or job.poll() is not None)
            time.sleep(2.5)  # some heartbeats, which name the phase
            pids = support.ranks_of(job)
            self.assertEqual(len(pids), 3)
            support.kill(pids[rank], signal.SIGSTOP)
            begin = time.monotonic()
            outcome = support.finish(job, limit=30)
            self.assertLess(time.monotonic() - begin, 3 + 12)
            self.assertEqual(outcome.code, 3, outcome)
            self.assertIn(f"rank {rank}/3", outcome.err)
            self.assertIn("has not been heard of", outcome.err)
            self.assertRegex(outcome.err, r"phase '(step \d+|pass 2|writing|opening)")
            support.wait_until(lambda: not any(map(support.alive, pids)), 10)


if __name__ == "__main__":
    support.main()
