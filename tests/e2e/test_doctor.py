"""amur doctor --cluster on pretend hosts: what it measures, and what it finds wrong."""
import os
import re

import hosts
import support


class Doctor(hosts.OnHosts):
    count = 2

    def doctor(self, slots, *args, code=0, **more):
        host_list = ",".join(f"{host}:{n}" for host, n in zip(self.hosts, slots))
        return self.call(self.hosts[0], "mpirun", "--host", host_list, "-n", sum(slots),
                         support.PROGRAM, "doctor", "--cluster", *args, code=code, **more)

    def test_sound(self):
        keepalive = {"OMPI_MCA_oob_tcp_keepalive_time": "4"}
        report = self.doctor((2, 2), "--json", "--run-dir", "here", **keepalive).json()
        self.assertEqual([host["name"] for host in report["hosts"]], self.hosts)
        self.assertEqual([host["ranks"] for host in report["hosts"]], [2, 2])
        self.assertEqual((report["problems"], report["warnings"]), ([], []))
        self.assertTrue(report["versions_equal"] and report["file_system"]["shared"])
        self.assertLess(report["clock_skew_seconds"], 1)
        for part, ranks in (("inside", 2), ("between", 2), ("all", 4)):
            measured = report["network"][part]
            self.assertEqual(measured["ranks"], ranks)
            self.assertTrue(0 < measured["latency_seconds"] < 0.1, measured)
            self.assertTrue(0 < measured["all_reduce_seconds"] < 5, measured)
        link = report["network"]["link"]
        self.assertTrue(0 < link["alpha_seconds_per_message"] < 0.1, link)
        self.assertTrue(1e6 < link["beta_bytes_per_second"] < 1e11, link)
        self.assertEqual(os.listdir(self.path("here")), [])

    def test_slow_link_is_seen(self):
        """200 Mbit/s are 25 MB/s: no sum can be faster, and this one is not much slower."""
        self.on_hosts("rate", "200mbit")
        self.addCleanup(self.on_hosts, "rate", "none")
        outcome = self.doctor((1, 1))
        self.assertNotIn("inside machines", outcome.out)
        found = re.search(r"^link +alpha [\d.]+ us a message, beta ([\d.]+) MB/s", outcome.out, re.M)
        self.assertTrue(found and 4 < float(found.group(1)) < 28, outcome)

    def strange(self, program=support.PROGRAM, code=0, **environment):
        """What doctor says where the second host has another program, or is not well."""
        command = ("doctor", "--cluster", "--run-dir", "run")
        return self.call(
            self.hosts[0], "mpirun", "--host", self.hosts[0], "-n", 1, support.PROGRAM, *command,
            ":", "--host", self.hosts[1], "-n", 1, "env",
            *[f"{name}={value}" for name, value in environment.items()], program, *command, code=code)

    def test_different_versions(self):
        """The other program is this one with another version number in it."""
        version = "amur " + self.run_in("doctor", "--json", ranks=0).json()["amur"]
        other = version[:-1] + "x"
        with open(support.PROGRAM, "rb") as program:
            built = program.read()
        self.assertIn(version.encode() + b"\0", built)
        with open(self.path("other"), "wb") as program:
            program.write(built.replace(version.encode() + b"\0", other.encode() + b"\0"))
        os.chmod(self.path("other"), 0o755)
        outcome = self.strange(program=self.path("other"), code=3)
        self.assertRegex(outcome.out, "PROBLEM +different versions: start the same installation")
        for host, text in zip(self.hosts, (version, other)):
            self.assertIn(f"; {host}: {text}, ", outcome.out)

    def test_clock_that_is_off(self):
        outcome = self.strange(LD_PRELOAD=os.environ["AMUR_STRANGE_HOST"], STRANGE_CLOCK=100)
        self.assertRegex(outcome.out, rf"warning +the clock of {self.hosts[1]} is (99|100)\.\d s off "
                                      rf"that of {self.hosts[0]}: ")
        self.assertIn("a run can start here", outcome.out)

    def test_folder_that_shows_old_files(self):
        outcome = self.strange(LD_PRELOAD=os.environ["AMUR_STRANGE_HOST"], STRANGE_FILES="/rank-0",
                               code=4)
        self.assertRegex(outcome.out, "PROBLEM +'run' shows the old content of a file that another "
                                      rf"host has changed on {self.hosts[1]}: choose a --run-dir")

    def test_folder_that_keeps_files(self):
        """The second host sees what the first writes there, but what it writes stays with it."""
        os.mkdir(self.path("run"))
        run = self.path("run")
        self.call(self.hosts[1], "sh", "-c", "mkdir /dev/shm/upper /dev/shm/work && mount -t overlay "
                  f"-o lowerdir={run},upperdir=/dev/shm/upper,workdir=/dev/shm/work none {run}")
        outcome = self.strange(code=4)
        self.assertRegex(outcome.out, "PROBLEM +'run' does not show what other hosts write on "
                                      rf"{self.hosts[0]}: choose a --run-dir")

    def test_folder_that_is_not_shared(self):
        outcome = self.doctor((2, 1), "--run-dir", "/dev/shm/run", code=4)
        self.assertRegex(outcome.out, rf"PROBLEM +'/dev/shm/run' cannot be written .* on {self.hosts[1]}:"
                                      " choose a --run-dir on a file system that all hosts share")
        self.assertIn("a run would fail here", outcome.out)
        self.assertRegex(outcome.out, "warning +mpirun would wait eight minutes")
        self.assertRegex(outcome.out, "warning +between 1 and 2 ranks on a host")


if __name__ == "__main__":
    support.main()
