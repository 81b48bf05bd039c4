"""Files written whole or not at all, read without running any code that they may hold, and locked."""

import contextlib
import io
import json
import os
import pickle
import re
import secrets
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch
from filelock import FileLock, Timeout

RETRY_FOR = 2.0  # seconds
LEFT_OVER = 3600  # seconds after which a temporary file is no longer being written


class DataError(ValueError):
    """A file or tensor is not what it should be; the message names it, what was expected and what was found."""


class ReadError(DataError):
    """The system did not let a file be read. The file itself may be good."""


class SaveError(OSError):
    """A file could not be written or removed: disk full, folder read-only. The message names it."""


class InUse(RuntimeError):
    """Another process holds a lock."""


def retry(operation: Callable[[], Any], path: Path) -> Any:
    """Call what renames or removes a file. Where the system refuses, try again for RETRY_FOR: on Windows a virus
    scanner or OneDrive may hold a file for a moment. Raises FileNotFoundError, and SaveError that names `path`."""
    until = time.monotonic() + RETRY_FOR
    while True:
        try:
            return operation()
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() > until:
                raise SaveError(f"{path}: cannot be written, {error.strerror or error}") from error
        time.sleep(0.05)


def atomic_write(path: Path, write: Callable[[BinaryIO], Any], keep: Path | None = None) -> None:
    """Write a file so that at every moment, a power cut included, it is the old one or the new one; `keep` is the old
    one's name from then on. Raises what `write` does, and SaveError where the system does not let it be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two machines may write at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):  # there is no old file
                retry(lambda: os.replace(path, keep), keep)
        retry(lambda: os.replace(temporary, path), path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save's hides the system's
        if isinstance(cause, OSError) and not isinstance(cause, SaveError):
            raise SaveError(f"{path}: cannot be written, {cause.strerror or cause}") from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process was quicker, or the folder is read-only
            if abs(time.time() - path.stat().st_mtime) > LEFT_OVER:  # a clock may have been wrong
                path.unlink()


@contextlib.contextmanager
def lock(path: Path, patience: float) -> Iterator[None]:
    """Hold a file's lock, `path` with .lock behind it, where there can be one: some network drives have none, a
    read-only folder no room. Raises InUse where another process has held it for `patience` seconds."""
    # A soft lock, which filelock would put in the place of a real one, outlives a killed process.
    held = FileLock(f"{path}.lock", thread_local=False, fallback_to_soft=False)
    try:
        held.acquire(timeout=patience, poll_interval=0.1)
    except Timeout:
        raise InUse(f"{path}: held by another process") from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def naming(path: Path, fault: str) -> Iterator[None]:
    """Turn a reader's errors into a DataError that names the file and `fault`, and the system's into a ReadError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read, {error.strerror or error}") from error
    except Exception as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(f"{path}: refused, it asks for {asked[1]}, which could run code") from error
        reason = "" if isinstance(error, pickle.UnpicklingError) else " ".join(str(error).split())  # those are long
        raise DataError(f"{path}: {fault}: {reason or type(error).__name__}") from error


class Unpickler(pickle._Unpickler):  # in Python: the one in C makes room for as many values as a file says it holds
    """Reads plain values and the `allowed` classes and functions, by their full names."""

    allowed: ClassVar[dict[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return self.allowed[f"{module}.{name}"]


def save_tensors(path: Path, value: Any, keep: Path | None = None) -> None:
    """Save tensors, and plain lists and dicts of them and of numbers and strings. The rest as in `atomic_write`."""
    atomic_write(path, lambda file: torch.save(value, file), keep)


def load_tensors(path: Path, allowed: dict[str, Any] | None = None) -> Any:
    """Load what `torch.save` wrote, onto the CPU: tensors, plain containers, and what is `allowed`, by its full name.
    Raises DataError where the file is missing, damaged or asks for more, which could run code; and ReadError."""
    with naming(path, "damaged, or not what torch.save writes"):
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(b"PK\3\4"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if archive.testzip():  # torch compares no checksums
                    raise ValueError("a part is not what was written")
        try:
            named = [(part, name) for name, part in (allowed or {}).items()]
            with torch.serialization.safe_globals(named), warnings.catch_warnings(action="ignore"):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not allowed or "Unsupported operand" not in str(error):
                raise
        # A later pickle protocol than weights_only knows: the same with an unpickler that is as strict.
        strict = SimpleNamespace(__name__="strict", Unpickler=type("Strict", (Unpickler,), {"allowed": allowed}))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=strict)


def save_pickle(path: Path, value: dict[str, Any]) -> None:
    """Pickle a dict of plain dicts, lists, numbers and strings. Raises SaveError."""
    atomic_write(path, lambda file: pickle.dump(value, file, protocol=4))


def load_pickle(path: Path) -> dict[str, Any]:
    """Load what `save_pickle` wrote. Raises DataError where it is missing, cut off, or asks for what could run code."""
    with naming(path, "damaged, or not a pickle of named values"), open(path, "rb") as file:
        return {**Unpickler(file).load()}


def save_json(path: Path, value: dict[str, Any], **options: Any) -> None:
    """Write plain values as JSON, with json's options. Raises SaveError."""
    atomic_write(path, lambda file: file.write((json.dumps(value, **options) + "\n").encode()))


def load_json(path: Path) -> dict[str, Any]:
    """The values that a JSON file of ours holds, by name; {} where there is none. Raises DataError otherwise."""
    with naming(path, "damaged, expected JSON with named values"):
        return {**json.loads(path.read_bytes())} if path.exists() else {}
