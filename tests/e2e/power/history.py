"""The history of what programs did to one folder, as `recorder.c` writes it down: building the recorder, running under
it, reading its log.
"""

import dataclasses
import os
import pathlib
import re
import struct
import subprocess
import typing

HEAD = struct.Struct("<cQQII")
SOURCE = pathlib.Path(__file__).with_name("recorder.c")


class Record(typing.NamedTuple):
    """One effect: the kinds are those of the recorder.

    c, d: a file, a folder was made · w: bytes were written at `number` · t: cut or grown to `number` bytes · s: synced ·
    r, l, u: a name was moved, given a second time, removed · a: standard output.
    """

    kind: str
    inode: int
    number: int
    first: str
    second: bytes


def build(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the recorder."""
    library = folder / "recorder.so"
    words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise AssertionError("the recorder of the power-loss test cannot be compiled: install cc (build-essential)") from None
    assert done.returncode == 0, f"the recorder of the power-loss test does not compile: {' '.join(words)}\n{done.stderr}"
    return library


@dataclasses.dataclass
class Recorder:
    """Where programs are watched (`root`), and what they did there, in the order in which they did it."""

    library: pathlib.Path
    root: pathlib.Path
    log: pathlib.Path

    def environment(self, clock_seconds: int = 0, kill_at: int = 0) -> dict[str, str]:
        """What a program needs in its environment to be watched.

        `clock_seconds` are added to its clock; it is killed after name number `kill_at`, if that is not 0.
        """
        return {
            "LD_PRELOAD": str(self.library),
            "POWER_ROOT": os.path.realpath(self.root),
            "POWER_LOG": str(self.log),
            "POWER_CLOCK_SECONDS": str(clock_seconds),
            "POWER_KILL_AT": str(kill_at),
        }

    def history(self) -> list[Record]:
        """All records so far."""
        bytes_, at, records = self.log.read_bytes(), 0, []
        while at < len(bytes_):
            kind, inode, number, first, second = HEAD.unpack_from(bytes_, at)
            at += HEAD.size
            name = bytes_[at : at + first].decode()
            records.append(Record(kind.decode(), inode, number, name, bytes_[at + first : at + first + second]))
            at += first + second
        unknown = sorted({record.first for record in records if record.kind == "?"})
        assert not unknown, f"the recorder does not know how to record {unknown}: teach it, or the replay is too kind"
        return records


def answers(history: list[Record], pattern: re.Pattern) -> list[int]:
    """For each line of standard output that matches, how many records there were when it was out."""
    places, line = [], b""
    for at, record in enumerate(history, 1):
        if record.kind != "a":
            continue
        *lines, line = (line + record.second).split(b"\n")
        places += [at] * sum(bool(pattern.match(text.decode())) for text in lines)
    return places
