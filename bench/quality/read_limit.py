"""A control group whose processes read no more than so many bytes a second from the disk of a file. Needs root."""

import contextlib
import os
import pathlib

GROUPS = pathlib.Path("/sys/fs/cgroup")


def disk(path):
    """Major and minor number of the whole disk that holds a file."""
    device = os.stat(path).st_dev
    folder = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    whole = folder.parent if (folder / "partition").exists() else folder
    return (whole / "dev").read_text(encoding="ascii").strip()


@contextlib.contextmanager
def read_limit(path, bytes_per_second):
    """Gives a function that a process calls to be limited, and the processes that it starts."""
    if (GROUPS / "cgroup.controllers").exists():
        (GROUPS / "cgroup.subtree_control").write_text("+io", encoding="ascii")
        parent, file, limit = GROUPS, "io.max", f"{disk(path)} rbps={bytes_per_second}"
    else:
        parent, file, limit = GROUPS / "blkio", "blkio.throttle.read_bps_device", f"{disk(path)} {bytes_per_second}"
    group = parent / f"read-limit-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(limit, encoding="ascii")
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    finally:
        group.rmdir()
