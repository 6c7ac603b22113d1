"""launch/relaunch.sh: a run that is started again on the hosts that are left."""
import os
import re
import signal

import hosts
import support

KEEPALIVE = {f"OMPI_MCA_oob_tcp_keepalive_{name}": value
             for name, value in (("time", "2"), ("intvl", "1"), ("probes", "2"))}
RELAUNCH = os.path.join(hosts.LAUNCH, "relaunch.sh")


class Relaunch(hosts.OnHosts):
    def command(self, on, run_dir, values, *flags):
        return [RELAUNCH, "--hosts", ",".join(on), "--run-dir", run_dir, "--amur", support.PROGRAM,
                *flags, "small.yaml", *support.settings(values)]

    def test_dead_hosts(self):
        """The host of rank 0 dies; the run ends on the others as if nothing had been."""
        values = {"parallel.threads": 1, "train.steps": 40, "eval.every_steps": 0,
                  "data.eval_limit": 0, "checkpoint.every_steps": 5, "checkpoint.keep": 2,
                  "runtime.liveness_seconds": 6}
        self.on_hosts("rate", "8mbit")
        job = self.spawn(self.hosts[0], self.command(self.hosts[1:], "run", values), **KEEPALIVE)
        self.wait_for_step("run", 8, job)
        self.wait_for_checkpoint("run")
        victim = self.hosts[1]
        self.assertEqual(self.ranks()[0][1], victim)
        self.on_hosts("kill", victim)
        self.addCleanup(self.on_hosts, "start", victim)
        self.on_hosts("rate", "none")
        outcome = support.finish(job, 120)
        self.assertEqual(outcome.code, 0, outcome)
        self.assertIn(f"start 0 on {','.join(host + ':1' for host in self.hosts[1:])}", outcome.out)
        self.assertIn(f"host {victim} does not answer", outcome.out)
        self.assertIn(f"start 1 on {','.join(host + ':1' for host in self.hosts[2:])}", outcome.out)
        self.assertRegex(outcome.err, r"\(relaunch .*\) is gone, its lock is taken over")
        self.assertRegex(outcome.err, r"resumed from .* at step \d+\n")
        self.assertEqual([line["step"] for line in support.metrics(self.path("run"))],
                         list(range(1, 41)))

    def test_gives_up(self):
        """Failures that leave no newer checkpoint are counted; a usage error is not tried again."""
        broken = self.write("broken", "#!/bin/sh\nexit 3\n")
        os.chmod(broken, 0o755)
        job = self.call(self.hosts[0], RELAUNCH, "--hosts", self.hosts[0], "--run-dir", "broken-run",
                        "--amur", broken, "--failures", "2", "small.yaml", code=3)
        self.assertIn("failure 1 of at most 2 since checkpoint none: it is started again", job.out)
        self.assertIn("failure 2 without a checkpoint newer than none: given up", job.out)
        self.assertEqual(job.out.count("relaunch.sh: start"), 2)
        job = self.call(self.hosts[0], *self.command(self.hosts[:1], "run", {"train.bach_size": 3}),
                        code=2)
        self.assertIn("exit code 2: another start would end alike", job.out)

    def test_stopped(self):
        """SIGTERM ends the run with a checkpoint, and the script with it."""
        values = {"parallel.threads": 1, "train.steps": 100000, "eval.every_steps": 0}
        job = self.spawn(self.hosts[0], self.command(self.hosts[:2], "run", values))
        self.wait_for_step("run", 3, job)
        os.kill(job.pid, signal.SIGTERM)
        outcome = support.finish(job)
        self.assertEqual(outcome.code, 75, outcome)
        self.assertRegex(outcome.err, r"stopped by SIGUSR1 at step \d+")
        self.assertEqual(len(re.findall("relaunch.sh: start", outcome.out)), 1)
        self.gone()


if __name__ == "__main__":
    support.main()
