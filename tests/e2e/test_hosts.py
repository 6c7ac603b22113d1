"""Failures of ranks, hosts, links and folders on four hosts: the culprit is named, the job ends soon
and non-zero, and the same run goes on from a checkpoint. What is only slow passes.
"""
import os
import re
import shutil
import signal
import subprocess
import time

import hosts
import support

LIVENESS = 6
# As launch/mpi.sh, in a hurry: a silent host is given up after 4 s.
KEEPALIVE = {f"OMPI_MCA_oob_tcp_keepalive_{name}": value
             for name, value in (("time", "2"), ("intvl", "1"), ("probes", "2"))}
BASE = {"parallel.threads": 1, "train.steps": 100000, "train.schedule_steps": 1000,
        "eval.every_steps": 0, "checkpoint.every_steps": 4, "checkpoint.keep": 2,
        "runtime.liveness_seconds": LIVENESS}


class Failures(hosts.OnHosts):
    """One run in one folder, which meets them all."""

    @classmethod
    def setUpClass(cls):
        # A small disk that all hosts share; it has to be there before they are.
        cls.disk = cls.enterClassContext(hosts.small_disk("4M"))
        super().setUpClass()

    def setUp(self):
        super().setUp()
        self.run_dir = os.path.join(self.disk, "run")

    def begin(self, on=None, values=None):
        """The run, started on these hosts, once it has gone on by a few steps."""
        before = support.metrics(self.run_dir)
        on = on or self.hosts
        args = self.train_args(self.run_dir, BASE | (values or {}))
        job = self.spawn(self.hosts[0], self.mpirun(args, hosts=on), **KEEPALIVE)
        newest = max((int(name[5:13]) for name in support.checkpoints(self.run_dir)), default=0) \
            if before else 0
        support.wait_until(lambda: job.poll() is not None or (
            (lines := support.metrics(self.run_dir)) and lines[-1]["step"] >= newest + 6
            and lines[-1] not in before), limit=120)
        self.assertIsNone(job.poll(), job.poll() is None or support.finish(job))
        self.assertEqual({rank: host for rank, (_, host) in self.ranks().items()},
                         dict(enumerate(on)))
        # No step twice, none left out: it went on from a checkpoint.
        steps = [line["step"] for line in support.metrics(self.run_dir)]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        return job

    def ended(self, job, *patterns, code=None, limit=LIVENESS + 9):
        """The job ends with these messages, and nothing of it is left."""
        begin = time.monotonic()
        outcome = support.finish(job, limit)
        if code is None:
            self.assertNotEqual(outcome.code, 0, outcome)
        else:
            self.assertEqual(outcome.code, code, outcome)
        for pattern in patterns:
            self.assertRegex(outcome.err, pattern)
        self.gone()
        seconds = time.monotonic() - begin
        print(f"{self.case}: exit code {outcome.code} after {seconds:.1f} s")
        return outcome

    def test_one_run_through_everything(self):
        third = self.hosts[2]
        left = [self.hosts[i] for i in (0, 1, 3)]

        self.case = "killed rank"
        job = self.begin()
        support.kill(self.ranks()[2][0])
        self.ended(job, rf"process rank 2 .* on node {third} exited on signal 9")

        self.case = "stopped rank"
        job = self.begin()
        support.kill(self.ranks()[2][0], signal.SIGSTOP)
        self.ended(job, rf"error: .*rank 2/4 {third} has not been heard of for", code=3)

        self.case = "killed host"
        job = self.begin()
        self.on_hosts("kill", third)
        self.ended(job, rf"(Remote daemon: .* on node|rank 2/4) {third}")

        self.case = "full disk"
        job = self.begin(on=left)
        filler = os.path.join(self.disk, "filler")
        with open(filler, "wb") as file:
            # Less than a checkpoint is left, whether or not one is just being written.
            while (room := shutil.disk_usage(self.disk).free) > 100_000:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size,
                                   min(room - 50_000, 50_000))
        self.ended(job, r"error: (writing a checkpoint|waiting until .* is written): .*step-\d+\.h5"
                        ".*No space left", code=4)
        os.remove(filler)

        self.case = "folder removed"
        job = self.begin(on=left)
        os.rename(self.run_dir, self.run_dir + "-gone")
        self.ended(job, rf"error: .*{self.run_dir}", code=4)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        os.rename(self.run_dir + "-gone", self.run_dir)

        self.on_hosts("start", third)
        self.case = "cut link"
        job = self.begin()
        self.on_hosts("cut", third)
        self.ended(job, rf"(Remote daemon: .* on node|rank 2/4) {third}")
        self.on_hosts("heal", third)

        # Not used by its host until the next checkpoint, which is far away.
        self.case = "folder gone from one host"
        job = self.begin(values={"checkpoint.every_steps": 0})
        subprocess.run(self.at(third, ["umount", "--lazy", self.disk]), check=True)
        self.ended(job, rf"error: .*run folder '{self.run_dir}' is no longer seen by {third}: ",
                   code=4)

    def test_shared_layers_stay_on_a_machine(self):
        """A tp group over two machines is refused before anything starts; inside one it runs."""
        args = self.train_args("shared", BASE | {"parallel.tp": 2, "train.steps": 2})
        for on, ranks in ((self.hosts[:2], 2), (self.hosts, 4)):
            outcome = self.call(on[0], *self.mpirun(args, hosts=on, slots=1, ranks=ranks), code=2)
            self.refuses(outcome, 2, "parallel.tp: ranks 0 to 1 would share every layer, but are not "
                                     f"on one machine ({ranks} hosts: {on[0]} (rank 0), {on[1]} (rank 1)",
                         "start a multiple of 2 ranks on each, in order")
            self.assertFalse(os.path.exists(self.path("shared")))
        self.call(self.hosts[0], *self.mpirun(args, hosts=self.hosts[:2], slots=2))

    def test_slow_is_not_dead(self):
        """Steps and checkpoint writes that take longer than the liveness limit, over slow links."""
        liveness = 2
        self.on_hosts("rate", "25mbit")
        self.addCleanup(self.on_hosts, "rate", "none")
        # 5 MB of momentum through the links in a step, twice as much in a checkpoint.
        values = BASE | {"train.steps": 1, "model.hidden": 384, "model.ffn": 768,
                         "runtime.liveness_seconds": liveness}
        # A heartbeat waits for what is before it on its connection. MPI-IO sends an aggregator 32 MB
        # at a time, which is 0.3 s at 1 Gbit/s; here it is as much less as the links are slower.
        job = self.spawn(self.hosts[0], self.mpirun(self.train_args("slow", values)),
                         OMPI_MCA_io_ompio_bytes_per_agg="524288")
        outcome = support.finish(job, 120)
        self.assertEqual(outcome.code, 0, outcome)
        step = support.metrics(self.path("slow"))[0]["seconds"]
        write = float(re.search(r"checkpoint .* in ([\d.]+) s", outcome.err).group(1))
        print(f"a step of {step:.1f} s and a checkpoint of {write:.1f} s passed a limit of {liveness} s")
        self.assertGreater(step, liveness)
        self.assertGreater(write, liveness)


if __name__ == "__main__":
    support.main()
