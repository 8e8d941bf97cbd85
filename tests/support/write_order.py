"""What a power cut could lose: reads a trace of system calls, and says where a file gets its name before its bytes are
on disk.

A disk keeps a file's bytes for sure once the file is flushed (fsync) after its last write, and a name once its folder
is. Between these, a power cut may leave a file of any length, or an older name. So a file or a folder that is written
under another name must be flushed before it gets its own; and nothing may be taken away before the name that replaces
it is on disk.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path, PurePath

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,sendfile,copy_file_range,fsync,fdatasync,"
    "rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,mkdirat"
)
_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")
_UNFINISHED = re.compile(r"^(\d+)\s+(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
_OF_DESCRIPTOR = re.compile(r"^\d+<(/[^>]*)>")
_OF_NAME = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITES = ("write", "pwrite64", "writev", "pwritev", "ftruncate", "sendfile")


def strace(trace: Path) -> list[str]:
    """Returns the words before a command that write its system calls to a file."""
    return ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-s", "0", "-e", f"trace={CALLS}", "-o", str(trace)]


def can_trace() -> bool:
    """Returns whether this machine has strace, and lets it trace."""
    try:
        return subprocess.run([*strace(Path("/dev/null")), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@dataclass
class Disk:
    """What is not yet on disk of a folder, while its calls are read one after the other.

    Attributes:
        folder: of which files are watched.
        unflushed: files with bytes that are not on disk.
        names: folders with names that are not.
        aside: what had its name and was moved aside.
        faults: what was found.
        renamed: files and folders that got a name by a rename.
    """

    folder: PurePath
    unflushed: set[PurePath] = field(default_factory=set)
    names: set[PurePath] = field(default_factory=set)
    aside: set[PurePath] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    renamed: list[PurePath] = field(default_factory=list)

    def opened(self, path: PurePath, flags: str) -> None:
        if "O_CREAT" in flags:
            self.names.add(path.parent)
        if any(flag in flags for flag in ("O_CREAT", "O_TRUNC")) and "O_DIRECTORY" not in flags:
            self.unflushed.add(path)

    def rename(self, source: PurePath, target: PurePath) -> None:
        if not self.is_passing(target):
            unfinished = sorted(inside(source, self.unflushed) | inside(source, self.names))
            self.faults += [f"{shown(path, self.folder)} is not flushed when it gets its name" for path in unfinished]
            self.renamed.append(target)
        if not self.is_passing(source):
            self.taken_away(source)
            if self.is_passing(target):
                self.aside.add(target)
        for each in (self.unflushed, self.names):
            moved = inside(source, each)
            each -= moved
            each |= {target / path.relative_to(source) for path in moved}
        self.names |= {source.parent, target.parent}

    def removed(self, path: PurePath) -> None:
        self.unflushed.discard(path)
        if not self.is_passing(path) or any(each == path or each in path.parents for each in self.aside):
            self.taken_away(path)

    def is_passing(self, path: PurePath) -> bool:
        """Whether a name is that of a file or folder on its way in or out, or inside of one."""
        if self.folder not in path.parents:
            return True
        return any(each.startswith(".") or each.endswith(".partial") for each in path.relative_to(self.folder).parts)

    def taken_away(self, path: PurePath) -> None:
        """A name goes for which nothing comes at once."""
        if self.folder in self.names:
            self.faults.append(f"{shown(path, self.folder)} is taken away before the names beside it are on disk")


def inside(folder: PurePath, paths: set[PurePath]) -> set[PurePath]:
    return {path for path in paths if path == folder or folder in path.parents}


def shown(path: PurePath, folder: PurePath) -> str:
    return str(path.relative_to(folder)) if folder in path.parents else str(path)


def read(trace: str, folder: Path, ignored: str = "") -> Disk:
    """Returns what a trace leaves unflushed in a folder, and what it did too early.

    Args:
        trace: of `strace`.
        ignored: a regular expression of names that are not looked at: files to which lines are added, such as logs.
    """
    disk = Disk(PurePath(folder))
    skip = re.compile(ignored) if ignored else None

    def watched(path: PurePath) -> bool:
        within = path == disk.folder or disk.folder in path.parents
        return within and not (skip and skip.search(str(path.relative_to(disk.folder))))

    for name, arguments in calls(trace):
        paths = [PurePath(at or "/", each) for at, each in _OF_NAME.findall(arguments)]
        if name in ("open", "openat", "creat"):
            if paths and watched(paths[0]):
                disk.opened(paths[0], arguments.rpartition('"')[2] if name != "creat" else "O_CREAT|O_TRUNC")
        elif name in _WRITES or name == "copy_file_range":
            found = re.findall(r"\d+<(/[^>]*)>", arguments) if name == "copy_file_range" else []
            of = _OF_DESCRIPTOR.match(arguments)
            path = PurePath(found[-1] if found else of.group(1) if of else "/")
            if watched(path) and not str(path).endswith("(deleted)"):
                disk.unflushed.add(path)
        elif name in ("fsync", "fdatasync"):
            if of := _OF_DESCRIPTOR.match(arguments):
                disk.unflushed.discard(PurePath(of.group(1)))
                disk.names.discard(PurePath(of.group(1)))
        elif name.startswith("rename"):
            if any(map(watched, paths)):
                disk.rename(paths[0], paths[1])
                if watched(paths[1]) and not watched(paths[0]):  # written elsewhere, or ignored: nobody flushed it
                    disk.unflushed.add(paths[1])
        elif name.startswith("link"):
            if watched(paths[1]):
                disk.names.add(paths[1].parent)
        elif name.startswith("unlink") and watched(paths[0]):
            disk.removed(paths[0])
        elif name.startswith("mkdir") and watched(paths[0]):
            disk.names.add(paths[0].parent)
    return disk


def calls(trace: str) -> list[tuple[str, str]]:
    """Returns name and arguments of each call that succeeded, where it ended, of all threads and processes."""
    found, begun = [], {}
    for line in trace.splitlines():
        if cut := _UNFINISHED.match(line):
            begun[cut.group(1)] = cut.group(2)
            continue
        if rest := _RESUMED.match(line):
            line = f"{rest.group(1)} {begun.pop(rest.group(1), '')}{rest.group(2)}"
        if (whole := _LINE.match(line)) and int(whole.group(3)) >= 0:
            found.append((whole.group(1), whole.group(2)))
    return found
