"""Files written whole or not at all, and read without running any code that they may hold."""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch


class DataError(ValueError):
    """A file or tensor is not what it should be; the message names it, what was expected and what was found."""


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that at every moment, a power cut included, it is the old one or the new one.

    `write` gets a binary file open for writing; its errors go through, and leave the old file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut could undo the rename
    except OSError:
        pass  # some network file systems cannot do this for folders
    finally:
        os.close(folder)


def save_tensors(path: Path, value: Any) -> None:
    """Save tensors, and plain lists and dicts of them and of numbers and strings."""
    write_whole(path, lambda file: torch.save(value, file))


def load_tensors(path: Path, classes: Iterable[type] = ()) -> Any:
    """Load what `torch.save` wrote, onto the CPU: tensors, plain containers, and instances of `classes` only.

    Raises DataError where the file is missing, damaged or holds anything else.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch does not compare the checksums that it writes
            if damaged is not None:
                raise DataError(f"{path}: damaged, the checksum of {damaged} is wrong")
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Can only" in str(error):  # torch's words for a class it was not told of
            raise DataError(
                f"{path}: refused, it holds more than tensors and plain containers and could run code when read"
            ) from error
        raise DataError(f"{path}: damaged or truncated, or not a file that torch.save wrote") from error
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise DataError(
            f"{path}: damaged or truncated, or not a file that torch.save wrote ({type(error).__name__})"
        ) from error


def save_pickle(path: Path, value: Any) -> None:
    """Pickle a value made of plain dicts, lists, numbers and strings."""
    write_whole(path, lambda file: pickle.dump(value, file, protocol=4))


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_pickle(path: Path) -> Any:
    """Load a pickle of plain dicts, lists, numbers and strings.

    Raises DataError where the file is missing, damaged or asks for any class or function, which could run code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if "asks for" in str(error):
            raise DataError(f"{path}: refused, {error}, and only plain values are read from it") from error
        raise DataError(f"{path}: damaged or truncated, or not a pickle") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise DataError(f"{path}: damaged or truncated, or not a pickle ({type(error).__name__})") from error
