"""Files and folders that are whole under their final name, or not there: written aside, put on the disk, renamed."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems, some networks' among them
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?:partial|old)-\d+")


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` as a shell has them: where there is no such user, it is a name like any other."""
    return Path(os.path.expanduser(path))


def sha256(path: str | Path) -> str:
    """Of what a file holds, in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, text: str) -> None:
    """Writes a text file so that the path holds either the old or the new text, also after a crash."""
    replace_pieces(path, [text.encode("utf-8")])


def replace_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """The same of a file that comes in pieces, which may be read from the old one. If they break off, that stays."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Puts a line at the end of a text file, and on the disk. Behind half a line, of a killed writer, it begins
    a new one."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + line.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def folder_aside(target: Path) -> Path:
    """Makes an empty folder beside `target`, where what belongs into it is written first."""
    check_above(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return aside


def write_folder(target: Path, fill: Callable[[Path], None], aside: Path | None = None) -> None:
    """Makes the folder `target` out of what `fill(folder)` writes; an older `target` is replaced once the new one is
    whole.

    aside: from `folder_aside`, where other processes have written already. If `fill` fails, nothing is left behind and
    an older `target` is untouched.
    """
    aside = folder_aside(target) if aside is None else aside
    try:
        fill(aside)
        put_in_place(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_in_place(aside: Path, target: Path) -> None:
    """Gives the whole folder `aside` its final name `target`, beside it; an older `target` is replaced. If that fails,
    both are as they were."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    _open_to_readers(aside)
    _fsync_tree(aside)
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(aside, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    _fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def file_in_the_way(folder: Path) -> Path | None:
    """The file that stands in the place of a folder, or of one above it; None: there is none."""
    return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)


def check_above(folder: Path) -> None:
    """Raises NotADirectoryError, which names it, where a file is in the way. (The system's own names none.)"""
    path = file_in_the_way(folder)
    if path is not None:
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file", str(folder))


def try_file(path: Path) -> None:
    """Raises OSError where no file can be put into the folder of `path`; whatever stands there is untouched."""
    tempfile.TemporaryFile(dir=path.parent).close()


def try_folder(path: Path) -> None:
    """Raises OSError where the folder `path`, and those above it, cannot be made or written into. What it makes to find
    out is removed again."""
    check_above(path)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    finally:
        for folder in new:
            with suppress(OSError):  # never made, or in use meanwhile
                folder.rmdir()


def remove_dead_writes(target: Path) -> None:
    """Removes what killed processes left of `target` half-written or half-removed; living ones keep theirs. An older
    `target` that was moved aside for one that never came is put back."""
    for left in [*target.parent.glob(f".{target.name}.partial-*"), *target.parent.glob(f".{target.name}.old-*")]:
        if _alive(left.name.rpartition("-")[2]):
            continue
        if left.name.startswith(f".{target.name}.old-") and not target.exists():
            os.rename(left, target)
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    _remove_dead_lock(_lock_path(target))


def remove_dead_writes_in(folder: Path) -> None:
    """The same of every target inside a folder."""
    for name in {found["name"] for path in folder.glob(".*") if (found := _ASIDE.fullmatch(path.name))}:
        remove_dead_writes(folder / name)


@contextmanager
def locked(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time makes `target`; `waiting` is called once where another one does. The lock is a file beside
    it and ends with its process, also a killed one. A file system without locks gives none."""
    path = _lock_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = _lock(path, waiting)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _remove_dead_lock(path: Path) -> None:
    import fcntl

    if not path.exists():
        return
    with suppress(OSError), path.open("r+b") as file:  # held by a living process; not ours; or no locks here
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            path.unlink()


def _lock(path: Path, waiting: Callable[[], None]) -> int:
    import fcntl

    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has removed it meanwhile


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_to_readers(folder: Path) -> None:
    """Whoever may look into the folder may read its files, as the umask has it. safetensors gives what it writes to the
    owner alone."""
    allowed = folder.stat().st_mode & 0o666
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            mode = path.stat().st_mode
            if allowed & ~mode:
                with suppress(OSError):  # a file system whose files have no modes of their own
                    path.chmod(mode | allowed)


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        _fsync_folder(Path(root))


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
