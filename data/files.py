"""Files written whole or not at all, read without running any code that they may hold, and locked."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, SoftFileLock, Timeout
from torch import Tensor


class DataError(ValueError):
    """A file or tensor is not what it should be; the message names it, what was expected and what was found."""


class ReadError(DataError):
    """The system did not let a file be read. The file itself may be good."""


class SaveError(OSError):
    """A file could not be written: disk full, folder read-only. The message names it; the old file is as it was."""


class InUse(RuntimeError):
    """Another process holds a lock."""


class _Watched:
    """A file that remembers the first error of the system in writing to it, for torch.save raises another one."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def atomic_write(path: Path, write: Callable[[BinaryIO], None], keep: Path | None = None) -> None:
    """Write a file so that at every moment, a power cut included, it is the old one or the new one.

    `write` gets a binary file open for writing; its errors go through, and leave the old file as it was. With `keep`
    the old file gets that name when the new one is whole; a process killed in that moment leaves `keep` alone.

    Raises SaveError where the system does not let the file be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two machines may write at once
    watched = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                watched = _Watched(file)
                write(watched)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                with contextlib.suppress(FileNotFoundError):  # another process, where there are no locks
                    os.replace(path, keep)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except Exception as error:
        cause = watched.error if watched is not None and watched.error is not None else error
        if not isinstance(cause, OSError):
            raise
        raise SaveError(f"{path}: cannot be written, {cause.strerror or cause}") from error
    with contextlib.suppress(OSError):  # some network file systems, and Windows, cannot do this for folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut could undo the rename
        finally:
            os.close(folder)


def remove_leftovers(folder: Path, older_than: float) -> None:
    """Remove the temporary files in a folder that killed processes left behind: those that were last written to more
    than `older_than` seconds ago."""
    for path in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process was quicker, or the folder is read-only
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


@contextlib.contextmanager
def lock(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a file, which nobody else can hold at the same time, here or in another process; it ends with
    the process. Yields whether there is one: some network drives have none, and a read-only folder has no room for it.

    path: the file; its lock, `path` with .lock behind it, lies beside it. patience: how many seconds to wait for who
    holds it. Raises InUse then.
    """
    # A soft lock, filelock's substitute where there is no real one, would outlive a killed process.
    held = FileLock(f"{path}.lock", thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=patience, poll_interval=0.1)
        alone = not isinstance(held, SoftFileLock)  # which some versions take all the same
    except Timeout:
        raise InUse(f"{path}: held by another process") from None
    except (OSError, NotImplementedError):
        alone = False
    if not alone:
        held.release()
    try:
        yield alone
    finally:
        held.release()


def save_tensors(path: Path, value: Any, keep: Path | None = None) -> None:
    """Save tensors, and plain lists and dicts of them and of numbers and strings. The rest as in `atomic_write`."""
    atomic_write(path, lambda file: torch.save(value, file), keep)


# A system's word for "not now" rather than for "not such a file": a drive that is away, or rights that are missing.
_NOT_NOW = {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE}


def load_tensors(path: Path, classes: Iterable[Any] = ()) -> Any:
    """Load what `torch.save` wrote, onto the CPU: tensors, plain containers, and instances of `classes` only.

    Raises DataError where the file is missing, damaged or holds anything else, or much more than its size allows;
    ReadError, which is one, where the system does not let it be read.
    """
    path, classes = Path(path), list(classes)
    try:
        with open(path, "rb") as file:
            archive = file.read(2) == b"PK"  # by which torch, too, tells archives from files of its old form
        if archive or zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(classes):
            value = torch.load(path, map_location="cpu", weights_only=True)
        _check_size(value, tuple(each for each in classes if isinstance(each, type)), path)
        return value
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise _not_read(path, error, "a file that torch.save wrote") from error
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's words for a class it was not told of
        if asked or "Can only" in str(error):
            what = asked[1] if asked else "a class or function"
            raise DataError(
                f"{path}: refused, it asks for {what}, more than tensors and plain containers, and could run code"
            ) from error
        raise DataError(f"{path}: {_describe(path)}") from error
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise DataError(f"{path}: {_describe(path)} ({type(error).__name__})") from error


def _describe(path: Path) -> str:
    """What a file is that torch.load cannot read."""
    with open(path, "rb") as file:
        start = file.read(100).lstrip().lower()
    for beginning, what in (
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
        (b"<", "a web page, not the file itself: download it again"),
    ):
        if start.startswith(beginning):
            return what
    return "damaged or truncated, or not a file that torch.save wrote"


def _not_read(path: Path, error: OSError, what: str) -> DataError:
    if error.errno in _NOT_NOW:
        return ReadError(f"{path}: cannot be read, {error.strerror}")
    return DataError(f"{path}: damaged or truncated, or not {what} ({type(error).__name__})")


def _check_archive(path: Path) -> None:
    """Compare the checksums, which torch writes and does not read; before that, that there is not more to read than
    the file is long: torch compresses nothing, and a small file that unpacks to a large one is made to do harm."""
    with zipfile.ZipFile(path) as archive:
        unpacked, length = (sum(entry.file_size for entry in archive.infolist()), path.stat().st_size)
        if unpacked > length:
            raise DataError(f"{path}: damaged or refused, its {length:,} bytes claim to unpack to {unpacked:,}")
        # Of an entry that is marked as a folder torch reads nothing: its numbers would be whatever the memory holds.
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10 and not entry.is_dir()]
        damaged = folders[0] if folders else archive.testzip()
    if damaged is not None:
        raise DataError(f"{path}: damaged, its part {damaged} is not what was written")


# Values of a file may be the same object, or tensors share their numbers, so that going through them takes longer than
# the file is long. Nothing that is meant to be read comes near this.
_UNFOLDED = 16  # times the length of the file
_NESTED = 20


def _check_size(value: Any, classes: tuple[type, ...], path: Path) -> None:
    """Raise DataError where a value that has been read unfolds to much more than its file holds: tensors that repeat
    few numbers endlessly, lists of lists that are all the same. Also where a tensor has no numbers in memory."""
    sizes: dict[int, int | None] = {}  # id -> bytes, or pieces, None while it is being counted

    def size(value: Any, depth: int) -> int:
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise DataError(f"{path}: refused, it holds a tensor that is not a plain one")
            value.requires_grad_(False)
            return value.numel() * value.element_size()
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise DataError(f"{path}: refused, it holds an array that is not of numbers")
            return value.nbytes
        if isinstance(value, dict):
            parts = [*value, *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = value
        elif isinstance(value, classes):
            parts = vars(value).values()
        else:
            return 1
        known = sizes.get(id(value), -1)
        if known is None or depth > _NESTED:
            raise DataError(f"{path}: refused, its lists lie within each other more than {_NESTED} times")
        if known < 0:
            sizes[id(value)] = None
            known = sizes[id(value)] = 1 + sum(size(part, depth + 1) for part in parts)
        return known

    length = path.stat().st_size
    unfolded = size(value, 0)
    if unfolded > _UNFOLDED * length:
        raise DataError(f"{path}: refused, its {length:,} bytes unfold to {unfolded:,}")


_CHECKSUM = b"sha256:"  # with the digest after it, behind the pickle's end, where pickle.load does not look


def save_pickle(path: Path, value: Any) -> None:
    """Pickle a value made of plain dicts, lists, numbers and strings, with a checksum behind it."""
    content = pickle.dumps(value, protocol=4)
    atomic_write(path, lambda file: file.write(content + _CHECKSUM + hashlib.sha256(content).digest()))


class _PlainUnpickler(pickle._Unpickler):  # in Python, for the one in C can be made to take all memory
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_pickle(path: Path) -> Any:
    """Load what `save_pickle` wrote: plain dicts, lists, numbers and strings. Raises DataError where the file is
    missing, damaged or asks for any class or function, which could run code."""
    path = Path(path)
    try:
        stored = path.read_bytes()
        end = len(stored) - len(_CHECKSUM) - hashlib.sha256().digest_size
        content, checksum = stored[: max(end, 0)], stored[max(end, 0) :]
        if checksum != _CHECKSUM + hashlib.sha256(content).digest():
            raise DataError(f"{path}: damaged or truncated, or not a pickle with a checksum")
        return _PlainUnpickler(io.BytesIO(content)).load()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise _not_read(path, error, "a pickle") from error
    except pickle.UnpicklingError as error:
        if "asks for" in str(error):
            raise DataError(f"{path}: refused, {error}, and only plain values are read from it") from error
        raise DataError(f"{path}: damaged or truncated, or not a pickle") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise DataError(f"{path}: damaged or truncated, or not a pickle ({type(error).__name__})") from error


def save_json(path: Path, value: Any, **options: Any) -> None:
    """Write plain values as JSON, with json's options. Raises SaveError."""
    atomic_write(path, lambda file: file.write((json.dumps(value, **options) + "\n").encode()))


def load_json(path: Path) -> dict[str, Any]:
    """What a JSON file of ours holds, by name; nothing where there is none. Raises DataError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: damaged, expected JSON: {error}") from error
