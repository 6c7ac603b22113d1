"""amur doctor --cluster on pretend hosts: what it measures, and what it finds wrong."""
import os

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
            self.assertTrue(0 < measured["alpha_seconds"] < 0.1, measured)
            self.assertTrue(0 < measured["beta_seconds_per_byte"] < 1e-5, measured)
        self.assertEqual(os.listdir(self.path("here")), [])

    def test_slow_link_is_seen(self):
        """200 Mbit/s are 40 ns/B: a 2-rank all-reduce cannot be faster, and is not much slower."""
        self.on_hosts("rate", "200mbit")
        self.addCleanup(self.on_hosts, "rate", "none")
        measured = self.doctor((1, 1), "--json").json()["network"]
        self.assertIsNone(measured["inside"])
        self.assertTrue(36e-9 < measured["between"]["beta_seconds_per_byte"] < 300e-9, measured)

    def test_folder_that_is_not_shared(self):
        outcome = self.doctor((2, 1), "--run-dir", "/dev/shm/run", code=4)
        self.assertRegex(outcome.out, rf"PROBLEM +'/dev/shm/run' cannot be written .* on {self.hosts[1]}:"
                                      " choose a --run-dir on a file system that all hosts share")
        self.assertIn("a run would fail here", outcome.out)
        self.assertRegex(outcome.out, "warning +mpirun would wait eight minutes")
        self.assertRegex(outcome.out, "warning +between 1 and 2 ranks on a host")


if __name__ == "__main__":
    support.main()
