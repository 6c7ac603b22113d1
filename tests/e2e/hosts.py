"""Pretend hosts for end-to-end tests (tests/support/hosts.sh), and Slurm on them.

A class of tests raises its hosts once. They go with the test's process, however that ends.
"""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile

import support

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support")
LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "launch")
# Nothing that ctest sets for Open MPI on one machine: users on clusters set nothing either, but root
# has to say so, and these hosts share two cores.
KEPT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_mpi_yield_when_idle",
        "OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_rmaps_base_oversubscribe")


def script(name, *args, check=True):
    done = subprocess.run([os.path.join(SCRIPTS, name), *map(str, args)], text=True, check=False,
                          capture_output=True, timeout=60 * support.TIME_FACTOR)
    if check and done.returncode != 0:
        raise AssertionError(f"{name} {args}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def small_disk(size):
    """A folder that holds so much."""
    folder = tempfile.mkdtemp(prefix="amur_disk_")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        os.rmdir(folder)


class OnHosts(support.EndToEnd):
    """Tests on `count` hosts; `self.hosts` are their names."""

    count = 4
    name = f"h{os.getpid()}"

    @classmethod
    def setUpClass(cls):
        cls.place = os.path.join(tempfile.mkdtemp(prefix="amur_hosts_"), cls.name)
        cls.addClassCleanup(shutil.rmtree, os.path.dirname(cls.place), ignore_errors=True)
        cls.addClassCleanup(script, "hosts.sh", cls.place, "down")
        script("hosts.sh", cls.place, "up", cls.count)
        script("hosts.sh", cls.place, "owner", os.getpid())
        cls.hosts = script("hosts.sh", cls.place, "names").split()

    def setUp(self):
        super().setUp()
        self.environment = {key: value for key, value in os.environ.items()
                            if not key.startswith("OMPI_") or key in KEPT}
        self.environment |= {"OMPI_MCA_plm_rsh_agent": os.path.join(SCRIPTS, "hosts_rsh.sh")}

    def on_hosts(self, what, *args):
        return script("hosts.sh", self.place, what, *args)

    def at(self, host, command):
        """The command line that runs a command on a host."""
        return [os.path.join(SCRIPTS, "hosts.sh"), self.place, "exec", host, *map(str, command)]

    def spawn(self, host, command, **more):
        job = subprocess.Popen(self.at(host, command), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               cwd=self.folder, env=self.environment | more)
        self.addCleanup(self.sweep)
        self.addCleanup(support.remove, job)
        return job

    def sweep(self):
        """Ends what a test has left on the hosts: daemons of mpirun are not its children."""
        for pid, _ in self.processes():
            support.kill(pid)

    def call(self, host, *command, limit=60, code=0, **more):
        outcome = support.finish(self.spawn(host, command, **more), limit)
        if code is not None:
            self.assertEqual(outcome.code, code, outcome)
        return outcome

    def mpirun(self, args, hosts=None, slots=1, ranks=None):
        """mpirun of amur over the hosts, as its user would type it on the first of them."""
        hosts = hosts or self.hosts
        host_list = ",".join(f"{host}:{slots}" for host in hosts)
        return ["mpirun", "--host", host_list, "-n", str(ranks or slots * len(hosts)),
                support.PROGRAM, *map(str, args)]

    def processes(self, name=None):
        """(process, host) of what runs on the hosts; `name`: of one program."""
        nets = {}
        for host in self.hosts:
            with open(os.path.join(self.place, host + ".net"), encoding="utf-8") as net:
                nets[net.read().strip()] = host
            with open(os.path.join(self.place, host + ".pid"), encoding="utf-8") as holder:
                nets[int(holder.read())] = None
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                host = nets.get(os.readlink(f"/proc/{pid}/ns/net"))
                exe = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            if host and int(pid) not in nets and (name is None or os.path.basename(exe) == name):
                found.append((int(pid), host))
        return found

    def ranks(self):
        """The processes of amur by rank: {rank: (process, host)}."""
        found = {}
        for pid, host in self.processes("amur"):
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    rank = re.search(rb"(?:^|\0)PMIX_RANK=(\d+)", environ.read())
            except OSError:
                continue
            if rank:
                found[int(rank.group(1))] = (pid, host)
        return found

    def wait_for_step(self, name, step, job=None, limit=60):
        """Until the run folder has that many steps."""
        def reached():
            if job is not None and job.poll() is not None:
                raise AssertionError(f"the job ended: {support.finish(job)}")
            return len(support.metrics(self.path(name))) >= step

        support.wait_until(reached, limit, pause=0.05)

    def wait_for_checkpoint(self, name, limit=60):
        """Until the run folder, which has steps, has a complete checkpoint."""
        support.wait_until(lambda: support.checkpoints(self.path(name)), limit, pause=0.05)

    def gone(self):
        """No process of amur is left on any host."""
        support.wait_until(lambda: not self.processes("amur"), 15)
