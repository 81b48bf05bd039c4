"""Where digits come from: the course's files, MNIST, or scikit-learn's digits."""

import contextlib
import gzip
import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from data.files import DataError, atomic_write, load_tensors
from data.labels import check_split, mend_labels, mend_images

NAMES = ("course", "mnist", "digits")
SPLITS = ("train", "val", "test")
COURSE_FILES = {
    "loc": {"images": "localization_{}.pt"},
    "det": {"images": "detection_{}.pt", "lists": "list_y_true_{}.pt"},
}
# What the course's files may be made of besides tensors, under the names that several versions pickle.
_numpy = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
COURSE_CLASSES = [TensorDataset, Subset, np.ndarray, np.dtype, *_numpy]
COURSE_CLASSES += [(function, f"numpy.core.multiarray.{function.__name__}") for function in _numpy]
COURSE_CLASSES += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i4", "i8", "?")]

LEVELS = (0.37, 0.82)  # of scikit-learn's digits when enlarged: become black and full ink
NO_INTERNET_AFTER = 4.0  # seconds to wait for a word of MNIST's server before going on without it


@dataclass(frozen=True)
class Digits:
    """28x28 digits that images are made from; no digit is in both parts."""

    train: Tensor  # (N, 28, 28) uint8
    train_classes: Tensor  # (N,) int64
    test: Tensor
    test_classes: Tensor
    source: str  # "mnist" or "digits"


def course_files(folder: Path, task: str) -> list[Path]:
    """The course's files that a task needs: three for "loc", six for "det"."""
    return [folder / name.format(split) for name in COURSE_FILES[task].values() for split in SPLITS]


def course_is_there(folder: Path, task: str) -> bool:
    """Whether the course's files for the task are in the folder. Raises DataError where only some of them are."""
    files = course_files(folder, task)
    missing = [path.name for path in files if not path.is_file()]
    if missing and len(missing) < len(files):
        raise DataError(
            f"{folder}: {len(files) - len(missing)} of the course's {len(files)} files for this task are there, "
            f"but not {', '.join(missing)}"
        )
    return not missing


def any_course_files(folder: Path) -> bool:
    """Whether any of the course's files, of either task, is in the folder."""
    return any(path.is_file() for task in COURSE_FILES for path in course_files(folder, task))


def load_course(
    folder: Path, task: str, split: str, log: Callable[[str], None]
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """One of the course's splits: images, labels, and for "det" the lists of boxes, (k, 6) per image.

    Harmless oddities are mended, and `log` is told in one line per file. Raises DataError that names the file where it
    is missing, damaged, or not what `data/README.md` describes.
    """
    path = folder / COURSE_FILES[task]["images"].format(split)
    stored = load_tensors(path, COURSE_CLASSES)
    try:
        images, labels = _as_pair(stored, path)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected images, and labels, all of one shape and of numbers: {error}") from error
    notes: list[str] = []
    images = mend_images(images, str(path), notes)
    labels = mend_labels(labels, task, str(path), notes)
    check_split(images, labels, task, str(path))
    if notes:
        log(f"{path.name}: {'; '.join(notes)}")
    if "lists" not in COURSE_FILES[task]:
        return images, labels, None
    path = folder / COURSE_FILES[task]["lists"].format(split)
    lists = load_tensors(path, COURSE_CLASSES)
    if not isinstance(lists, (list, tuple)):
        raise DataError(f"{path}: expected a list of lists of boxes, found {type(lists).__name__}")
    if len(lists) != len(images):
        raise DataError(f"{path}: {len(lists)} lists of boxes but {len(images)} images")
    return (images, labels, [_as_boxes(boxes, number, path) for number, boxes in enumerate(lists)])


def _as_pair(stored: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Images and labels out of a TensorDataset, a list of pairs, or a Subset of either."""
    if isinstance(stored, Subset):
        images, labels = _as_pair(stored.dataset, path)
        return images[stored.indices], labels[stored.indices]
    if isinstance(stored, TensorDataset):
        stored = getattr(stored, "tensors", ())
        if len(stored) != 2:
            raise DataError(f"{path}: expected a TensorDataset of images and labels, found {len(stored)} tensors")
    if not isinstance(stored, (list, tuple)):
        raise DataError(f"{path}: expected a TensorDataset or a list of pairs, found {type(stored).__name__}")
    if not len(stored):
        raise DataError(f"{path}: empty, expected at least one image")
    if len(stored) == 2 and all(isinstance(part, (Tensor, np.ndarray)) for part in stored):
        return torch.as_tensor(stored[0]), torch.as_tensor(stored[1])
    for number, pair in enumerate(stored):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f"{path}: entry {number} is not a pair (image, label)")
    images, labels = zip(*stored, strict=True)
    return torch.stack([*map(torch.as_tensor, images)]), torch.stack([*map(torch.as_tensor, labels)])


def _as_boxes(boxes: Any, number: int, path: Path) -> Tensor:
    """The boxes of one image, (k, 6), out of a list of tensors, arrays or lists of numbers, or a tensor of them."""
    try:
        entries = [torch.as_tensor(box) for box in boxes]
        found = torch.stack(entries) if entries else torch.zeros(0, 6)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: image {number}: expected boxes of six numbers: {error}") from error
    if found.ndim != 2 or found.shape[1] != 6:
        raise DataError(f"{path}: image {number}: expected boxes of six numbers, found {tuple(found.shape[1:])}")
    return found if found.dtype == torch.float64 else found.float()


def mnist_files(folder: Path) -> list[Path]:
    """MNIST's four raw files in `folder/MNIST/raw`, whether they are there or not: training images and classes, test
    images and classes."""
    from torchvision.datasets import MNIST

    return [folder / "MNIST" / "raw" / Path(name).stem for name, _ in MNIST.resources]


def mnist_is_there(folder: Path, log: Callable[[str], None] = print) -> bool:
    """Whether MNIST's raw files are in `folder/MNIST/raw`. One that is missing, damaged or unpacked by half is unpacked
    from the packed file beside it, or from the internet if there is any; `log` is told where a damaged file stays so,
    and where files cannot be written."""
    from torchvision.datasets import MNIST

    damaged = []
    try:
        for path, (name, md5) in zip(mnist_files(folder), MNIST.resources, strict=True):
            if not _is_whole(path):
                damaged += [path.name] * path.exists()
                content = gzip.decompress(_find_packed(path.with_name(name), md5, MNIST.mirrors))
                atomic_write(path, lambda file, content=content: file.write(content))
    except OSError as error:
        log(f"data: MNIST's files{' are damaged, and' * bool(damaged)} cannot be had: {error}")
        return False
    return True


def _find_packed(path: Path, md5: str, mirrors: list[str]) -> bytes:
    """The content of a packed file of MNIST: the one that is there, if it is whole, else from the first mirror that has
    it. Raises OSError where nobody has."""
    if path.is_file() and _md5(content := path.read_bytes()) == md5:
        return content
    addresses = [mirror + path.name for mirror in mirrors]
    if why := _why_unreachable(addresses):
        raise ConnectionError(f"{path.name}: no download, {why}")
    for address in addresses:
        with contextlib.suppress(OSError, HTTPException):
            with urlopen(address, timeout=NO_INTERNET_AFTER) as answer:
                content = answer.read()
            if _md5(content) == md5:
                return content
    raise ConnectionError(f"{path.name}: no mirror has it whole")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _why_unreachable(addresses: list[str]) -> str:
    """Why there is a file at none of the addresses, asked for directly or through the system's proxy; nothing where
    there is one. Waits for NO_INTERNET_AFTER seconds, looking up names included."""
    answered, said = threading.Event(), [f"no answer in {NO_INTERNET_AFTER} seconds"]

    def ask(address: str) -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=NO_INTERNET_AFTER).close()
            answered.set()
        except (OSError, HTTPException, ValueError) as error:  # ValueError: the proxy that is named is no address
            said.append(str(error) or type(error).__name__)

    # A name's look-up cannot be given a time limit, but a thread can be left behind.
    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    for _ in range(int(NO_INTERNET_AFTER / 0.1)):
        if answered.wait(0.1) or not any(thread.is_alive() for thread in threads):
            break
    return "" if answered.is_set() else said[-1]


def load_mnist(folder: Path) -> Digits:
    """MNIST (LeCun, Cortes and Burges): 60,000 and 10,000 digits, from the raw files in `folder/MNIST/raw`. Raises
    DataError where they are not whole."""
    train, train_classes, test, test_classes = map(_read_raw, mnist_files(folder))
    return Digits(train, train_classes.long(), test, test_classes.long(), "mnist")


def _read_raw(path: Path) -> Tensor:
    """One of MNIST's raw files: (N, 28, 28) or (N,) uint8. Raises DataError where it is missing or damaged."""
    count = 60_000 if path.name.startswith("train") else 10_000
    shape = (count, 28, 28) if "images" in path.name else (count,)
    # Two zeros, 8 for unsigned bytes, the number of axes, their lengths; then the numbers.
    head = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">i4").tobytes()
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {error.strerror}") from error
    if not stored.startswith(head) or len(stored) != len(head) + math.prod(shape):
        raise DataError(f"{path}: damaged or truncated, or not MNIST's")
    found = torch.frombuffer(bytearray(stored), dtype=torch.uint8, offset=len(head)).view(shape)
    if found.ndim == 1 and found.max() > 9:
        raise DataError(f"{path}: damaged, expected classes 0 to 9, found {found.max()}")
    return found


def _is_whole(path: Path) -> bool:
    try:
        _read_raw(path)
    except DataError:
        return False
    return True


def load_digits() -> Digits:
    """The 1,797 8x8 digits that scikit-learn carries, enlarged smoothly to 20x20 inside 28x28.

    They are scikit-learn's copy of the test part of Alpaydin and Kaynak's "Optical Recognition of Handwritten
    Digits" (UCI). Every seventh digit is for the test set.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    small = torch.from_numpy(digits.images.astype(np.float32)) / 16
    large = F.interpolate(small[:, None], size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    # Enlarged strokes fade out softly. Stretched so, as many pixels hold ink, and full ink, as in MNIST.
    low, high = LEVELS
    large = ((large - low) / (high - low)).clamp(0, 1)
    images = F.pad(large, (4, 4, 4, 4))[:, 0].mul(255).round().byte()
    classes = torch.from_numpy(digits.target).long()
    test = torch.arange(len(classes)) % 7 == 3
    return Digits(images[~test], classes[~test], images[test], classes[test], "digits")
