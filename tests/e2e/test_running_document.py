"""Every command of docs/running.md is run, as it stands there, on pretend hosts under Slurm."""
import os
import re

import hosts
import support

DOCUMENT = os.path.join(hosts.LAUNCH, "..", "docs", "running.md")


class RunningDocument(hosts.OnHosts):
    count, name = 4, "node"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        hosts.script("slurm.sh", cls.place, "up", "4")

    def sweep(self):
        """The daemons of Slurm stay until the hosts go."""

    def test_commands(self):
        with open(DOCUMENT, encoding="utf-8") as document:
            text = document.read()
        blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
        # Whatever stands in a block is a command: there are no other blocks.
        self.assertEqual(len(re.findall(r"^```", text, re.M)), 2 * len(blocks))
        self.assertGreaterEqual(len(blocks), 7)

        # The names that the document uses, with small data behind them.
        os.mkdir(self.path("configs"))
        for name in ("dictionary", "wordnet"):
            self.write(f"configs/{name}.yaml", support.SMALL)
        os.symlink(os.path.realpath(hosts.LAUNCH), self.path("launch"))
        self.environment |= {
            "PATH": f"{os.path.dirname(support.PROGRAM)}:{os.environ['PATH']}",
            "SLURM_CONF": os.path.join(self.place, "slurm", "slurm.conf")}
        for block in blocks:
            # Long enough to be met by a signal, which takes its time through Slurm.
            self.on_hosts("rate", "512kbit" if "USR1" in block else "none")
            outcome = self.call(self.hosts[0], "timeout", "120", "bash", "-ec",
                                block + "\nfor job in $(jobs -p); do wait $job || "
                                        "[ $? = 75 ]; done", limit=130)
            self.assertNotIn("error:", outcome.err.replace("srun: error", ""), outcome)
            support.wait_until(lambda: not self.jobs(), 120, pause=0.5)
        for run in ("dictionary", "words", "wordnet", "other", "seed-1", "seed-2", "stopped"):
            self.assertEqual(support.metrics(self.path("runs", run))[-1]["step"], 10, run)
        logs = [name for name in os.listdir(self.path("runs")) if name.startswith("stopped-")]
        with open(self.path("runs", *[name for name in logs if name.endswith(".log")]),
                  encoding="utf-8") as log:
            self.assertIn("stopped by SIGUSR1", log.read())

    def jobs(self):
        return self.call(self.hosts[0], "squeue", "--noheader").out


if __name__ == "__main__":
    support.main()
