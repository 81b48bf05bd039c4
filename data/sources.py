"""Where digits come from: the course's files, MNIST, or scikit-learn's digits."""

import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from data.files import load_tensors, lock, naming
from data.labels import check_split, lists_to_grid, same_digits

NAMES = ("course", "mnist", "digits")
SPLITS = ("train", "val", "test")
COURSE_FILES = {"loc": ["localization_{}.pt"], "det": ["detection_{}.pt", "list_y_true_{}.pt"]}
MOST_OUTSIDE = 0.001  # share of pixels outside [0, 1] that is a slip; more is another scale

# The classes and functions that a course file may ask for; NumPy's had other names before its version 2.
_parts = [TensorDataset, Subset, ConcatDataset, range, OrderedDict, np.ndarray, np.dtype]
_parts += [torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter, np.float64(0).__reduce__()[0]]
_parts += [np.empty(0).__reduce_ex__(protocol)[0] for protocol in (2, 5)]
_parts += [type(np.dtype(kind)) for kind in ("?", "u1", "i4", "i8", "f2", "f4", "f8")]
ALLOWED = {f"{part.__module__}.{part.__qualname__}": part for part in _parts}
ALLOWED |= {name.replace("numpy._core", "numpy.core"): part for name, part in ALLOWED.items()}

MNIST_BYTES = {"train-images-idx3-ubyte": 47_040_016, "train-labels-idx1-ubyte": 60_008}
MNIST_BYTES |= {"t10k-images-idx3-ubyte": 7_840_016, "t10k-labels-idx1-ubyte": 10_008}
NO_INTERNET_AFTER = 4.0  # seconds without a word of MNIST's server

LEVELS = (0.37, 0.82)  # of scikit-learn's digits when enlarged: become black and full ink


@dataclass(frozen=True)
class Digits:
    """28x28 digits that images are generated from; no digit is in both parts."""

    train: Tensor  # (N, 28, 28) uint8
    train_classes: Tensor  # (N,) int64
    test: Tensor
    test_classes: Tensor
    source: str  # "mnist" or "digits"


def course_files(folder: Path, task: str) -> list[Path]:
    """The course's files that a task needs, there or not: three for "loc", six for "det"."""
    return [Path(folder) / name.format(split) for name in COURSE_FILES[task] for split in SPLITS]


def load_course(
    folder: Path, task: str, split: str, log: Callable[[str], None]
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """One of the course's splits: images, labels, and for "det" the lists of boxes, (k, 6) per image. `log` is told of
    what was mended. Raises DataError that names the file where it is not what `data/README.md` describes."""
    path, *more = (Path(folder) / name.format(split) for name in COURSE_FILES[task])
    stored = load_tensors(path, ALLOWED)
    with naming(path, "expected a TensorDataset of images and labels, or a list of pairs of them"):
        images, labels = _as_pair(stored, path.stat().st_size)
        images = images[:, None] if images.ndim == 3 else images
        images, labels = images if images.dtype == torch.uint8 else images.float(), labels.float()
        outside = (images < 0) | (images > 1) if images.is_floating_point() else torch.zeros(1)
        if 0 < outside.float().mean() <= MOST_OUTSIDE:
            log(f"{path.name}: clipped pixels outside [0, 1] in {int(outside.flatten(1).any(1).sum()):,} image(s)")
            images = images.clamp(0, 1)
        check_split(images, labels, task, str(path))
    lists = None
    for path in more:
        stored = load_tensors(path, ALLOWED)
        with naming(path, f"expected {len(images):,} lists of boxes of six numbers"):
            _limit(6 * sum(map(len, stored)), path.stat().st_size)
            lists = [_as_boxes(boxes) for boxes in stored]
            grid = lists_to_grid(lists, str(path)).float()
            check_split(images, grid, task, str(path))
            if not same_digits(grid, labels):
                raise ValueError(f"not the same digits as in {COURSE_FILES[task][0].format(split)}")
    return images, labels, lists


def _as_pair(stored: Any, most: int) -> tuple[Tensor, Tensor]:
    """Images and labels, (N, ...) each, of a TensorDataset, a list of pairs, or a Subset or ConcatDataset of those, as
    long as they are not more than `most` numbers."""
    if isinstance(stored, Subset):
        images, labels = _as_pair(stored.dataset, most)
        _limit(len(stored.indices) * (images[0].numel() + labels[0].numel()), most)
        indices = torch.as_tensor([*stored.indices])
        return images[indices], labels[indices]
    if isinstance(stored, ConcatDataset):
        pairs = []
        for part in stored.datasets:
            pairs.append(_as_pair(part, most))
            most -= pairs[-1][0].numel() + pairs[-1][1].numel()
        return tuple(map(torch.cat, zip(*pairs, strict=True)))
    if not isinstance(stored, (TensorDataset, list, tuple)):
        raise TypeError(f"found {type(stored).__name__}")
    pairs = [stored.tensors] if isinstance(stored, TensorDataset) else stored
    if not all(isinstance(part, (Tensor, np.ndarray)) for pair in pairs for part in pair):
        raise TypeError("found something else than tensors and arrays")
    images, labels = ([torch.as_tensor(part).detach() for part in parts] for parts in zip(*pairs, strict=True))
    _limit(sum(tensor.numel() for tensor in (*images, *labels)), most)
    if isinstance(stored, TensorDataset):
        return images[0], labels[0]
    return torch.stack(images), torch.stack(labels)


def _limit(numbers: int, most: int) -> None:
    """Each number takes a byte of a file at least, but a small file can repeat one image endlessly."""
    if not 0 < numbers <= most:
        raise ValueError(f"refused, found {numbers:,} numbers in {most:,} bytes")


def _as_boxes(boxes: Any) -> Tensor:
    """The boxes of one image, (k, 6) float32, of tensors, arrays or lists of numbers."""
    if any(len(box) != 6 for box in boxes):
        raise ValueError(f"found boxes of {[len(box) for box in boxes]}")
    return torch.tensor([[float(value) for value in box] for box in boxes]).view(len(boxes), 6)


def mnist_files(folder: Path) -> list[Path]:
    """MNIST's four raw files in `folder/MNIST/raw`, there or not."""
    return [Path(folder) / "MNIST" / "raw" / name for name in MNIST_BYTES]


def load_mnist(folder: Path) -> Digits:
    """MNIST (LeCun, Cortes and Burges): 60,000 and 10,000 digits, from the raw files in `folder/MNIST/raw`, the packed
    ones beside them, or the internet. Raises DataError, within some seconds, where it cannot be had."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity

    files, timeout = mnist_files(folder), socket.getdefaulttimeout()
    with naming(files[0].parent, "expected MNIST's files; remove them if they are damaged"):
        if not all(path.is_file() and path.stat().st_size == MNIST_BYTES[path.name] for path in files):
            socket.setdefaulttimeout(NO_INTERNET_AFTER)
            try:
                with lock(files[0].parent, 600):  # another process may be unpacking them
                    for path in files:  # torchvision takes any file that is there, even half of one
                        if path.exists() and path.stat().st_size != MNIST_BYTES[path.name]:
                            path.unlink()
                    packed = [(path.with_name(name), md5) for path, (name, md5) in zip(files, MNIST.resources)]
                    if not all(path.with_suffix("").exists() or check_integrity(path, md5) for path, md5 in packed):
                        urlopen(Request(MNIST.mirrors[0] + packed[0][0].name, method="HEAD")).close()
                    MNIST(folder, download=True)
            finally:
                socket.setdefaulttimeout(timeout)
        train, test = MNIST(folder, train=True), MNIST(folder, train=False)
        for part, count in ((train, 60_000), (test, 10_000)):
            if part.data.shape != (count, 28, 28) or part.targets.shape != (count,) or part.targets.max() > 9:
                raise ValueError("found other numbers of digits or classes")
    return Digits(train.data, train.targets, test.data, test.targets, "mnist")


def load_digits() -> Digits:
    """The 1,797 8x8 digits that scikit-learn carries, enlarged smoothly to 20x20 inside 28x28. Every seventh is for the
    test set. They are the test part of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI)."""
    from sklearn.datasets import load_digits as load

    digits, (low, high) = load(), LEVELS
    small = torch.from_numpy(digits.images.astype(np.float32)) / 16
    large = F.interpolate(small[:, None], size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    # Enlarged strokes fade out softly. Stretched so, as many pixels hold ink, and full ink, as in MNIST.
    large = ((large - low) / (high - low)).clamp(0, 1)
    images = F.pad(large, (4, 4, 4, 4))[:, 0].mul(255).round().byte()
    classes = torch.from_numpy(digits.target).long()
    test = torch.arange(len(classes)) % 7 == 3
    return Digits(images[~test], classes[~test], images[test], classes[test], "digits")
