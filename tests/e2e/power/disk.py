"""A model of a disk that loses its power, in the strictest reading of what fsync promises.

A file holds what it held when it was last synced. A name is there if its folder was synced after the name was made, and
gone if its folder was synced after it was removed; syncing a file says nothing about its name. What was not synced may
be there or not, each change on its own: `survivors` drops all of it, or draws.
"""

import dataclasses
import hashlib
import os
import pathlib
import random
from collections.abc import Callable

from power.history import Record

# A torn write ends at a multiple of this many bytes of the file.
SECTOR_BYTES = 512

# Paths below the root; a folder has no digest.
Tree = dict[str, str | None]
EMPTY = hashlib.sha256().hexdigest()


@dataclasses.dataclass(eq=False)
class File:
    content: bytearray = dataclasses.field(default_factory=bytearray)
    synced: bytes = b""
    digest: str = EMPTY
    # Since the last sync: where and what was written, or None and the new size.
    pending: list[tuple[int | None, bytes | int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Folder:
    names: dict[str, "Node"] = dataclasses.field(default_factory=dict)
    synced: dict[str, "Node"] = dataclasses.field(default_factory=dict)


Node = File | Folder
# What one system call did to names: which folder, which name, and what it names now (None: nothing).
Change = list[tuple[Folder, str, Node | None]]


class Disk:
    """The files below a folder, which must be empty at first."""

    def __init__(self, root: pathlib.Path):
        self.path = os.path.realpath(root)
        self.root = Folder()
        self.inodes: dict[int, Node] = {os.stat(root).st_ino: self.root}
        self.changes: list[Change] = []
        self.contents: dict[str, bytes] = {EMPTY: b""}

    def apply(self, record: Record) -> None:
        """Goes on by one record."""
        match record.kind:
            case "c" | "d":
                node = self.inodes[record.inode] = File() if record.kind == "c" else Folder()
                self.name(record.first, node)
            case "w" | "t":
                file = self.inodes[record.inode]
                file.pending.append((record.number, record.second) if record.kind == "w" else (None, record.number))
                write(file.content, *file.pending[-1])
            case "s":
                self.sync(self.inodes[record.inode])
            case "l":
                self.name(record.second.decode(), self.node(record.first))
            case "u":
                self.name(record.first, None)
            case "r":
                source, target = record.first, record.second.decode()
                node = self.node(source)
                # Two names of one file: a rename between them does nothing.
                if self.node(target) is not node:
                    self.changes.append(self.set(source, None) + self.set(target, node))

    def sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.synced = bytes(node.content)
            node.digest = self.digest(node.synced)
            node.pending.clear()
            return
        node.synced = dict(node.names)
        for change in self.changes:
            change[:] = [effect for effect in change if effect[0] is not node]
        self.changes = [change for change in self.changes if change]

    def name(self, path: str, node: Node | None) -> None:
        self.changes.append(self.set(path, node))

    def set(self, path: str, node: Node | None) -> Change:
        above, name = os.path.split(self.relative(path))
        folder = self.node(os.path.join(self.path, above))
        if node is None:
            del folder.names[name]
        else:
            folder.names[name] = node
        return [(folder, name, node)]

    def relative(self, path: str) -> str:
        return os.path.relpath(os.path.normpath(path), self.path)

    def node(self, path: str) -> Node | None:
        """What a path names now."""
        node = self.root
        for part in self.relative(path).split("/"):
            if part != ".":
                node = node.names.get(part) if isinstance(node, Folder) else None
        return node

    def now(self) -> Tree:
        """What a process that is killed leaves: everything that was done."""
        return self.tree(lambda folder: folder.names, lambda file: self.digest(bytes(file.content)))

    def survivors(self, choose: random.Random | None = None) -> Tree:
        """What a power loss leaves: nothing that was not synced, or what `choose` draws of it."""
        if choose is None:
            return self.tree(lambda folder: folder.synced, lambda file: file.digest)
        share = choose.choice([0.2, 0.5, 0.8])
        drawn: dict[Folder, dict[str, Node | None]] = {}
        for change in self.changes:
            if choose.random() < share:
                for folder, name, node in change:
                    drawn.setdefault(folder, dict(folder.synced))[name] = node

        def content(file: File) -> str:
            return self.digest(torn(file, share, choose)) if file.pending else file.digest

        return self.tree(lambda folder: drawn.get(folder, folder.synced), content)

    def tree(self, names: Callable[[Folder], dict[str, Node | None]], digest: Callable[[File], str]) -> Tree:
        tree: Tree = {}
        waiting: list[tuple[str, Folder]] = [("", self.root)]
        while waiting:
            above, folder = waiting.pop()
            for name, node in names(folder).items():
                path = above + name
                if isinstance(node, Folder):
                    tree[path] = None
                    waiting.append((path + "/", node))
                elif node is not None:
                    tree[path] = digest(node)
        return tree

    def digest(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.contents.setdefault(digest, content)
        return digest

    def build(self, tree: Tree, folder: pathlib.Path) -> None:
        """Makes the files of a tree below a new folder."""
        folder.mkdir()
        for path, digest in sorted(tree.items()):
            if digest is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(self.contents[digest])


def write(content: bytearray, offset: int | None, what: bytes | int) -> None:
    size = what if offset is None else offset + len(what)
    if size > len(content):
        content.extend(bytes(size - len(content)))
    if offset is None:
        del content[size:]
    else:
        content[offset:size] = what


def torn(file: File, share: float, choose: random.Random) -> bytes:
    """What may be in a file: of the changes since its last sync each is there, or not, or a front part of it."""
    content = bytearray(file.synced)
    for offset, what in file.pending:
        if choose.random() >= share:
            continue
        if offset is not None and choose.random() < 0.3:
            end = (offset + choose.randrange(len(what))) // SECTOR_BYTES * SECTOR_BYTES
            what = what[: max(0, end - offset)]
        write(content, offset, what)
    return bytes(content)


def on_disk(folder: pathlib.Path) -> Tree:
    """The tree of a real folder."""
    digests = {path: None if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}
    return {str(path.relative_to(folder)): digest for path, digest in digests.items()}


def identity(tree: Tree) -> str:
    """The same for the same trees."""
    return hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()
