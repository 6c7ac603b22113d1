"""Ranks and hosts that are killed and links that are cut at random instants, over and over: nothing
is lost.

test_hosts_soak.py [FAILURES]
"""
import concurrent.futures
import os
import random
import subprocess
import sys
import time

import hosts
import support

FAILURES = 100
# Each on hosts of its own: most of the time goes by in waiting for time limits.
LANES, HOSTS_OF_LANE = 4, 3
LIVENESS = 3
KEEPALIVE = {f"OMPI_MCA_oob_tcp_keepalive_{name}": value
             for name, value in (("time", "1"), ("intvl", "1"), ("probes", "1"))}
# A position table much longer than any text makes checkpoints large and steps cheap.
VALUES = {"parallel.threads": 1, "model.hidden": 64, "model.max_length": 10000, "train.batch_size": 32,
          "train.schedule_steps": 1000, "checkpoint.every_steps": 1, "checkpoint.keep": 2,
          "eval.every_steps": 0, "data.eval_limit": 20, "runtime.liveness_seconds": LIVENESS}


class Lane:
    """One run on a few of the hosts, and what happens to it."""

    def __init__(self, test, number):
        self.test, self.run = test, f"run{number}"
        # mpirun runs on the first host, which stays.
        self.head = test.hosts[0]
        self.hosts = test.hosts[1 + number * HOSTS_OF_LANE:][:HOSTS_OF_LANE]
        self.draw = random.Random(f"lane {number}")
        self.folder = test.path(self.run, "checkpoints")
        self.messages = test.path(self.run + ".messages")
        self.seen = {}  # "rank": how often
        self.inside_write = self.left_behind = 0

    def command(self, steps):
        return self.test.mpirun(self.test.train_args(self.run, VALUES | {"train.steps": steps}),
                                hosts=self.hosts)

    def processes(self):
        return [(pid, host) for pid, host in self.test.processes("amur") if host in self.hosts]

    def writes(self):
        """Temporary files of checkpoints, each with what tells it from an earlier one of its name."""
        found = set()
        for path in support.temporary_files(self.folder):
            try:
                found.add((path, os.stat(path).st_ino))
            except FileNotFoundError:
                pass
        return found

    def newest(self):
        """The newest step under a final name, after a look into every such file."""
        steps = [0]
        for name in support.checkpoints(self.test.path(self.run)) if os.path.isdir(self.folder) else []:
            outcome = self.test.run_in("inspect", os.path.join(self.folder, name), "--verify",
                                       "--brief", ranks=0)
            self.test.assertEqual(outcome.code, 0, outcome)
            steps.append(int(name[5:13]))
        return max(steps)

    def said(self):
        with open(self.messages, encoding="utf-8") as messages:
            return messages.read()

    def fail(self, turns):
        newest = self.newest()
        for _ in range(turns):
            newest = self.one_failure(newest)
        return newest

    def one_failure(self, before):
        test, draw = self.test, self.draw
        kind = draw.choices(("rank", "host", "link"), (7, 3, 1))[0]
        in_write, wait, writes = draw.random() < 0.6, draw.random(), draw.randint(1, 3)
        victim = draw.randrange(len(self.hosts))
        stale = self.writes()
        # To a file: what a cut leaves behind on the other side would hold a pipe.
        with open(self.messages, "w", encoding="utf-8") as messages:
            job = subprocess.Popen(test.at(self.head, self.command(1000)), cwd=test.folder,
                                   stdout=messages, stderr=messages, start_new_session=True,
                                   env=test.environment | KEEPALIVE)
            test.addCleanup(job.kill)
            failure = None
            try:
                self.meet(job, kind, victim, in_write, wait, writes, stale)
            except AssertionError as e:
                failure = e
        said = self.said()
        test.assertIsNone(failure, f"{self.run}, {kind} of rank {victim}: {failure}\n"
                                   f"{self.processes()}\n{said}")
        test.assertNotEqual(job.returncode, 0, said)
        self.inside_write += bool(self.writes() - stale)
        if before and "resumed from" in said:
            test.assertRegex(said, rf"resumed from .* at step {before}\b")
        after = self.newest()
        test.assertGreaterEqual(after, before)
        return after

    def connections(self):
        """Of mpirun's host, with their timers."""
        return subprocess.run(self.test.at(self.head, ["ss", "-tnop"]), text=True, check=True,
                              stdout=subprocess.PIPE).stdout

    def wait_until_gone(self, limit):
        try:
            support.wait_until(lambda: not self.processes(), limit, pause=0.05)
        except AssertionError:
            return False
        return True

    def meet(self, job, kind, victim, in_write, wait, writes, stale):
        """The failure, from the start of the job until nothing of it is left."""
        test = self.test
        support.wait_until(lambda: len(self.processes()) == len(self.hosts) or job.poll() is not None,
                           pause=0.05)
        if in_write:
            seen = set()

            def enough():
                seen.update(self.writes() - stale)
                return len(seen) >= writes or job.poll() is not None

            support.wait_until(enough, pause=0.002)
            time.sleep(0.02 * wait)
        else:
            time.sleep(wait)
        test.assertIsNone(job.poll(), self.run)
        host = self.hosts[victim]
        if kind == "rank":
            support.kill(next(pid for pid, at in self.processes() if at == host))
        elif kind == "host":
            test.on_hosts("kill", host)
        else:
            test.on_hosts("cut", host)
        begin = time.monotonic()
        try:
            job.wait(30 * support.TIME_FACTOR)
        except subprocess.TimeoutExpired as e:
            if support.KILLED_IN_GREETING not in self.said() or self.processes():
                raise AssertionError(f"mpirun is still there\n{self.connections()}") from e
            for pid in support.processes_of(job.pid):
                support.kill(pid)
            job.wait()
        seconds = time.monotonic() - begin
        gone = self.wait_until_gone(20 if kind != "link" else LIVENESS + 5)
        if kind == "link" and not gone:
            # A rank that was still in MPI_Init has no watchdog, and its daemon waits for TCP.
            self.left_behind += 1
            test.on_hosts("kill", host)
            test.on_hosts("start", host)
        else:
            test.assertTrue(gone, self.processes())
            if kind != "rank":
                test.on_hosts("start" if kind == "host" else "heal", host)
        print(f"{self.run}: {kind} of rank {victim}, {seconds:.1f} s", file=sys.stderr)
        self.seen[kind] = self.seen.get(kind, 0) + 1


class Soak(hosts.OnHosts):
    count, failures = 1 + LANES * HOSTS_OF_LANE, FAILURES

    def test_nothing_is_lost(self):
        begin = time.monotonic()
        self.addCleanup(self.sweep)
        lanes = [Lane(self, number) for number in range(LANES)]
        turns = [len(range(i, self.failures, LANES)) for i in range(LANES)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            newest = list(pool.map(Lane.fail, lanes, turns))
        kinds = {kind: sum(lane.seen.get(kind, 0) for lane in lanes) for kind in ("rank", "host", "link")}
        inside = sum(lane.inside_write for lane in lanes)
        print(f"{kinds}, {inside} of them inside a checkpoint write, up to step {max(newest)}, in "
              f"{time.monotonic() - begin:.0f} s; ranks that had to be ended behind a cut: "
              f"{sum(lane.left_behind for lane in lanes)}", file=sys.stderr)
        self.assertEqual(sum(kinds.values()), self.failures)
        self.assertGreaterEqual(inside, self.failures // 4)

        # The runs that were ended so often are the one that never was.
        last = max(newest) + 2
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for lane, outcome in zip(lanes, pool.map(
                    lambda lane: support.finish(self.spawn(lane.head, lane.command(last))), lanes)):
                self.assertEqual(outcome.code, 0, outcome)
        values = VALUES | {"train.steps": last, "checkpoint.every_steps": 0}
        self.call(self.hosts[0], *self.mpirun(self.train_args("straight", values),
                                              hosts=lanes[0].hosts))
        straight = support.columns(self.path("straight"))
        self.assertEqual([line[0] for line in straight], list(range(1, last + 1)))
        for lane in lanes:
            self.assertEqual(support.columns(self.path(lane.run)), straight)
            self.assertEqual(support.temporary_files(self.path(lane.run)), [])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Soak.failures = int(sys.argv.pop(1))
    support.main()
