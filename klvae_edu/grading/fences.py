"""Fences around the process of a hand-in, as far as the system has them. None needs privileges.

`docs/teaching.md` says what each of them stops, and what it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT")
SETTINGS = {"KLVAE_EDU_QUIET": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
PROCESSES = (
    512  # and threads, beyond those that the user has: notebook 12 starts several processes with some threads each
)
FILE_BYTES = 2_000_000_000
_READ = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys", "/dev", "/run")
_WRITTEN = ("/dev/null", "/dev/zero", "/dev/full", "/dev/shm", "/dev/tty")


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a hand-in's process: those in `KEPT`, and its folder as home and for temporary files."""
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    homes = {
        name: str(folder) for name in ("HOME", "USERPROFILE", "TMPDIR", "TMP", "TEMP", "IPYTHONDIR", "MPLCONFIGDIR")
    }
    return own | homes | SETTINGS


def missing(bwrap: bool) -> list[str]:
    """Name the fences that this system does not have, each in one line."""
    lines = []
    if sys.platform != "linux":
        lines.append(f"no limits on memory, files and processes, and no Landlock: {sys.platform} has none of them")
    elif landlock_version() < 1:
        lines.append("no Landlock in this kernel: a hand-in can read your files, and write where you can")
    if not bwrap:
        lines.append("no bwrap here: a hand-in can reach the network (on Debian and Ubuntu: apt install bubblewrap)")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        lines.append("you are root: the number of processes has no limit; grade as another user")
    return lines


def confine(folder: Path, gigabytes: float) -> None:
    """Set limits on this process and on all that it starts, and close the file system but for `folder`."""
    if sys.platform != "linux":
        return
    import resource

    tasks = sum(p.num_threads() for p in psutil.process_iter() if _is_ours(p))
    for kind, limit in (
        (resource.RLIMIT_DATA, int(gigabytes * 1e9)),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NPROC, tasks + PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit is set already
            resource.setrlimit(kind, (limit, limit))
    if landlock_version() >= 1:
        _close_file_system(folder)


def _is_ours(process: psutil.Process) -> bool:
    try:
        return bool(process.uids().real == os.getuid())
    except psutil.Error:
        return False


# ---- Nothing outlives the grader ------------------------------------------------------------------------------------


_SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVILEGES = 36, 38


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


@contextlib.contextmanager
def nothing_outlives() -> Iterator[None]:
    """Kill, at the end, every process that was started meanwhile, also one that has left its session and its parent."""
    before = {process.pid for process in psutil.Process().children()}
    if sys.platform == "linux":
        _prctl(_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    try:
        yield
    finally:
        while started := [it for it in psutil.Process().children() if it.pid not in before]:
            family = [*started, *(it for parent in started for it in _children(parent))]
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(family, timeout=5)
        if sys.platform == "linux":
            _prctl(_SET_CHILD_SUBREAPER, 0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


# ---- Landlock: https://docs.kernel.org/userspace-api/landlock.html ---------------------------------------------------


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # by version; 3 and later: with truncation
_SCOPE_SIGNALS_AND_ABSTRACT_SOCKETS = 3  # from version 6 on


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has; 0 or less if it has none."""
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def readable() -> list[Path]:
    """List the folders that a hand-in may read: the system's, Python's and this package's."""
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[1])]
    paths = [Path(path).resolve() for path in [*_READ, *own, *(it for it in sys.path if it)]]
    return [path for path in dict.fromkeys(paths) if path.exists() and path != Path("/")]


def _close_file_system(folder: Path) -> None:
    """Allow this process to read what `readable` lists, and to write into `folder` only.

    Raises:
        OSError: the kernel refuses.
    """
    libc, version = ctypes.CDLL(None, use_errno=True), landlock_version()
    rights = _ALL_RIGHTS[min(version, 3)]
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}  # bytes of the structure that a version knows
    ruleset = _Ruleset(rights, 0, _SCOPE_SIGNALS_AND_ABSTRACT_SOCKETS if version >= 6 else 0)
    file = libc.syscall(
        _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(sizes.get(version, 24)), ctypes.c_uint32(0)
    )
    if file < 0:
        raise OSError(ctypes.get_errno(), "Landlock: no ruleset")
    reads = _EXECUTE | _READ_FILE | _READ_DIR
    allowed = [(path, reads) for path in readable()]
    allowed += [(Path(path), rights) for path in _WRITTEN if Path(path).exists()] + [(folder, rights)]
    for path, access in allowed:
        parent = os.open(path, os.O_PATH)
        rule = _PathBeneath(access if path.is_dir() else access & _OF_FILES & rights, parent)
        libc.syscall(_ADD_RULE, file, ctypes.c_uint32(1), ctypes.byref(rule), ctypes.c_uint32(0))
        os.close(parent)
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    if libc.syscall(_RESTRICT_SELF, file, ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "Landlock: not restricted")
    os.close(file)


# ---- bwrap and containers: no network, and own processes ----------------------------------------------------------


def in_bwrap(command: list[str], folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the command line that runs `command` in bubblewrap: no network but loopback, no process but its own."""
    home = Path.home().resolve()
    binds = [it for path in readable() if path.is_relative_to(home) for it in ("--ro-bind", str(path), str(path))]
    return [
        shutil.which("bwrap") or "bwrap",
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", str(home), *binds),
        *("--bind", str(folder), str(folder), "--chdir", str(folder)),
        *("--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--clearenv"),
        *(it for name, value in settings.items() for it in ("--setenv", name, value)),
        *command,
    ]


@functools.cache
def bwrap_works() -> bool:
    """Tell whether bubblewrap is installed and may be used here: some systems forbid what it needs."""
    if shutil.which("bwrap") is None:
        return False
    command = in_bwrap(["true"], Path(tempfile.gettempdir()), {"PATH": os.environ.get("PATH", "")})
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def in_container(command: list[str], image: str, settings: Mapping[str, str], gigabytes: float) -> list[str]:
    """Return the command line that runs `command` in Docker or Podman, whichever is installed.

    Raises:
        ValueError: neither is installed.
    """
    program = shutil.which("docker") or shutil.which("podman")
    if program is None:
        raise ValueError("--container: expected docker or podman, found neither")
    return [
        *(program, "run", "--rm", "--interactive", "--init", "--network", "none", "--read-only"),
        *("--tmpfs", "/work:rw,size=2g,mode=1777", "--workdir", "/work", "--user", "65534:65534"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--pids-limit", str(PROCESSES), "--memory", f"{gigabytes:g}g", "--memory-swap", f"{gigabytes:g}g"),
        *(it for name, value in settings.items() for it in ("--env", f"{name}={value}")),
        *(image, *command),
    ]
