"""Sums over ranks through two hosts with two ranks each."""
import numpy as np
import hosts
import support

BASE = {"parallel.threads": 1, "train.steps": 8, "train.schedule_steps": 8, "checkpoint.every_steps": 4,
        "checkpoint.keep": 9, "train.chunk_tokens": 128, "train.activation_budget": "100KB"}


class SyncOnHosts(hosts.OnHosts):
    count = 2

    def trained(self, name, values):
        """The state at the end, and the bytes that were sent."""
        args = self.train_args(self.path(name), BASE | values)
        self.call(self.hosts[0], *self.mpirun(args, slots=2), limit=90)
        state = support.datasets(support.checkpoint(self.path(name), BASE["train.steps"]))
        sent = sum(line["sync_bytes_sent"] for line in support.metrics(self.path(name)))
        return {tensor: np.asarray(value).tobytes() for tensor, value in state.items()}, sent

    def test_through_nodes(self):
        overlapped, sent = self.trained("overlapped", {})
        self.assertEqual(self.trained("at-the-end", {"parallel.overlap_sync": "false"}),
                         (overlapped, sent))
        # One rank of a host exchanges: 2 V in place of 6 V.
        _, by_messages = self.trained("messages", {"parallel.node_sync": "false"})
        self.assertEqual(by_messages, 3 * sent)
        rounded = {"parallel.sync_precision": "bf16"}
        inexact, half = self.trained("rounded", rounded)
        self.assertEqual(2 * half, sent)
        self.assertNotEqual(inexact, overlapped)
        # What was rounded away is in the checkpoint: a run that stops goes on bit for bit.
        args = self.train_args(self.path("halves"), BASE | rounded | {"train.steps": 4})
        self.call(self.hosts[0], *self.mpirun(args, slots=2), limit=90)
        self.assertEqual(self.trained("halves", rounded)[0], inexact)


if __name__ == "__main__":
    support.main()
