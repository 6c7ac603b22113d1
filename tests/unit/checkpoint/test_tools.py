"""The version 1 fixture through h5py, h5dump and h5ls: values, attributes and check sums."""
import subprocess
import sys

import h5py
import numpy as np

path = sys.argv[1]


def checksum(values):
    bits = np.ascontiguousarray(values).reshape(-1).view(f"<u{values.dtype.itemsize}")
    x = np.arange(1, bits.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + bits
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return int(np.add.reduce(x))


checked = 0
with h5py.File(path, "r") as f:
    assert f.attrs["format"] == b"amur-checkpoint", f.attrs["format"]
    assert f.attrs["version"] == 1 and f.attrs["complete"] == 1
    assert f["/state"].attrs["step"] == 7
    assert f["/state"].attrs["seed"] == 0xFEDCBA9876543210
    assert f["/config"][()].decode() == "model:\n  hidden: 6  # größer\n"
    assert list(f["/model/qkv.weight"].attrs["axes"]) == [b"fixed", b"heads", b"head", b"model"]
    assert f["/model/scale"].shape == ()
    assert np.array_equal(f["/metrics/loss"], [0.5, 0.25, 0.1])

    def check(name, item):
        global checked
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            if values.dtype.kind == "S":  # strings are summed byte by byte, padding included
                values = np.frombuffer(values.tobytes(), dtype=np.uint8)
            assert checksum(values) == int(item.attrs["checksum"]), name
            checked += 1

    f.visititems(check)
assert checked == 21, checked

listing = subprocess.run(["h5ls", "-r", path], check=True, capture_output=True, text=True).stdout
assert "/model/qkv.weight        Dataset {3, 4, 5, 6}" in listing, listing
dump = subprocess.run(["h5dump", "-d", "/metrics/loss", path], check=True, capture_output=True,
                      text=True).stdout
assert "0.5, 0.25, 0.1" in dump, dump
print(f"{checked} data sets agree with their check sums")
