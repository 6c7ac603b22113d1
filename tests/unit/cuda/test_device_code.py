"""The device code in the GPU back end: for which processors it is, and whether every kernel can be
launched on them. Read from the module itself: an ELF file with a section of "fat binaries", each of
which holds an ELF file (machine code) or a text (PTX) for one architecture.

AMUR_CUDA_MODULE comes from ctest. The module is linked without compression of device code.
"""
import os
import struct
import unittest

MODULE = os.environ["AMUR_CUDA_MODULE"]

# A100, H100 and B200 have the same register file; shared memory of a block as it is without asking
# for more (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability").
REGISTERS_OF_BLOCK = 65536
REGISTERS_OF_THREAD = 255
STATIC_SHARED_MEMORY = 48 * 1024
WANTED_MACHINE_CODE = {80, 90, 100}
WANTED_PTX = {80}

FAT_MAGIC = 0xBA55ED50
PTX, ELF = 1, 2
REGISTERS, MAX_THREADS, FRAME_SIZE = 0x2F, 0x05, 0x11  # attributes in .nv.info


class Section:
    def __init__(self, name, info, link, data, size):
        self.name, self.info, self.link, self.data, self.size = name, info, link, data, size


def sections(elf):
    """Sections of a 64-bit little-endian ELF file."""
    assert elf[:4] == b"\x7fELF" and elf[4] == 2, elf[:8]
    offset, = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * entry) for i in range(count)]
    text = headers[names][4]
    found = []
    for name, kind, _, _, start, size, link, info, _, _ in headers:
        end = elf.index(b"\0", text + name)
        data = b"" if kind == 8 else elf[start:start + size]  # 8: takes no space in the file
        found.append(Section(elf[text + name:end].decode(), info, link, data, size))
    return found


def fat_entries(data):
    """(kind, architecture, payload) of every entry of every fat binary in the section."""
    at = 0
    while at + 16 <= len(data):
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != FAT_MAGIC:
            at += 8
            continue
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, entry)
            compressed, = struct.unpack_from("<I", data, entry + 16)
            architecture, = struct.unpack_from("<I", data, entry + 28)
            assert compressed == 0, "device code is compressed"
            start = entry + entry_header
            yield kind, architecture, data[start:start + payload]
            entry = start + payload
        at = end


def attributes(data):
    """(attribute, value bytes) of a .nv.info section."""
    at = 0
    while at + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        if form == 4:  # the value follows
            yield attribute, data[at + 4:at + 4 + size]
            at += 4 + size
        else:  # the value stands in the place of its size
            yield attribute, data[at + 2:at + 4]
            at += 4


class Kernel:
    def __init__(self, name):
        self.name, self.registers, self.threads, self.shared, self.frame = name, 0, 0, 0, 0


def kernels(cubin):
    """What every kernel of a machine-code file takes."""
    by_name = {s.name: s for s in sections(cubin)}
    symbols = by_name[".symtab"].data
    names = by_name[".strtab"].data

    def symbol(index):
        start, = struct.unpack_from("<I", symbols, index * 24)
        return names[start:names.index(b"\0", start)].decode()

    found = {name[6:]: Kernel(name[6:]) for name in by_name if name.startswith(".text.")}
    for attribute, value in attributes(by_name[".nv.info"].data):
        if attribute not in (REGISTERS, FRAME_SIZE):
            continue
        index, number = struct.unpack("<II", value)
        kernel = found.get(symbol(index))
        if kernel and attribute == REGISTERS:
            kernel.registers = number
        elif kernel:
            kernel.frame = number
    for kernel in found.values():
        for attribute, value in attributes(by_name[".nv.info." + kernel.name].data):
            if attribute == MAX_THREADS:
                x, y, z = struct.unpack("<III", value)
                kernel.threads = x * y * z
        shared = by_name.get(".nv.shared." + kernel.name)
        kernel.shared = shared.size if shared else 0
    return list(found.values())


def problems_of(kernel):
    """Why this kernel could not be launched, or not be fast, as far as its resources say."""
    found = []
    if not 0 < kernel.threads <= 1024:
        found.append(f"launch bounds of {kernel.threads} threads")
    if not 0 < kernel.registers <= REGISTERS_OF_THREAD:
        found.append(f"{kernel.registers} registers a thread")
    granted = (kernel.registers + 7) // 8 * 8  # a thread gets eights
    if granted * kernel.threads > REGISTERS_OF_BLOCK:
        found.append(f"{granted} registers for {kernel.threads} threads")
    if kernel.shared > STATIC_SHARED_MEMORY:
        found.append(f"{kernel.shared} bytes of shared memory")
    if kernel.frame > 64:
        found.append(f"{kernel.frame} bytes of local memory a thread: registers are spilled")
    return found


class DeviceCode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(MODULE, "rb") as file:
            data = file.read()
        fat = [s.data for s in sections(data) if s.name in (".nv_fatbin", "__nv_relfatbin")]
        cls.entries = [entry for section in fat for entry in fat_entries(section)]

    def test_every_processor_is_served(self):
        sources = [set() for _ in range(2)]
        for kind, architecture, _ in self.entries:
            sources[kind == PTX].add(architecture)
        machine, ptx = sources
        self.assertLessEqual(WANTED_MACHINE_CODE, machine)
        self.assertLessEqual(WANTED_PTX, ptx)

    def test_every_kernel_can_be_launched(self):
        names = {}
        for kind, architecture, payload in self.entries:
            if kind != ELF:
                continue
            for kernel in kernels(payload):
                names.setdefault(architecture, set()).add(kernel.name)
                self.assertEqual(problems_of(kernel), [], (architecture, kernel.name))
                if os.environ.get("AMUR_VERBOSE"):
                    print(f"sm_{architecture} {kernel.registers:3} registers {kernel.shared:5} B "
                          f"shared {kernel.frame:3} B local {kernel.threads:4} threads {kernel.name}")
        # Each has its code for every processor.
        self.assertGreater(len(names[80]), 20)
        for architecture in WANTED_MACHINE_CODE:
            self.assertEqual(names[architecture], names[80], architecture)

    def test_excess_is_seen(self):
        kernel = Kernel("greedy")
        kernel.registers, kernel.threads = 64, 1024
        self.assertEqual(problems_of(kernel), [])
        for name, value in (("registers", 65), ("shared", 49153), ("frame", 72), ("threads", 0),
                            ("threads", 2048), ("registers", 256)):
            kernel.__dict__.update(registers=64, threads=1024, shared=0, frame=0)
            setattr(kernel, name, value)
            self.assertNotEqual(problems_of(kernel), [], name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
