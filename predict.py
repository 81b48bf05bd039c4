"""Finds handwritten digits in a grayscale picture with the weights that come with the project.

python predict.py picture.png                     at most one digit, 0 to 9
python predict.py picture.png --task detection    several digits, zeros and ones only

It prints class, score and box (left, top, right, bottom in pixels of the picture) of each digit, and draws them.
The networks have seen light digits, 10 to 30 pixels high, on a darker, noisy background of 48x60 pixels.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

import utils
from data import DataError
from data.labels import HEIGHT, WIDTH
from training.progress import forgive_output
from training.weights import Trained, load_weights

TASKS = {"localization": "loc", "detection": "det"}
# A seven is no zero or one, but detection cannot say so: one digit too few is better than a wrong one.
DEFAULT = "localization"
OVERLAP = 0.5  # IoU above which two boxes of one class are one digit, on the border of two cells and found in both
WEIGHTS = Path(__file__).resolve().parent / "weights"

# ---------------------------------------------------------------------------------------------- pictures


def read_picture(picture: Any, log: Callable[[str], None] = print) -> Tensor:
    """A picture as (1, H, W) float32 in [0, 1], 0 being black.

    picture: a file, a PIL image, or an array or tensor (H, W), (1, H, W) or (H, W, 1), uint8, bool, or floats in
    [0, 1]. Colour is converted to grayscale, and of a file with several pictures the first is taken; `log` is told.
    A file's picture is turned as its EXIF orientation asks.

    Raises DataError where it is none of these, unreadable, empty, transparent, or not finite numbers in [0, 1].
    """
    where = _name(picture)
    if isinstance(picture, (str, Path, Image.Image)):
        return _as_tensor(_read_image(picture, where, log), where)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy knows no bfloat16
    if not isinstance(picture, np.ndarray):
        found = type(picture).__name__
        raise DataError(f"{where}: expected a file, a PIL image, an array or a tensor, found {found}")
    return _as_tensor(picture, where)


def _name(picture: Any) -> str:
    """What messages call a picture."""
    return str(picture) if isinstance(picture, (str, Path)) else "picture"


def _read_image(source: str | Path | Image.Image, where: str, log: Callable[[str], None]) -> np.ndarray:
    """The grayscale pixels of a file or of a PIL image, which may still have to read its file."""
    try:
        if isinstance(source, Image.Image):
            return _as_gray(source, where, log)
        with Image.open(source) as image:
            count = getattr(image, "n_frames", 1)
            if count > 1:
                log(f"{where}: holds {count} pictures, the first is taken")
            return _as_gray(ImageOps.exif_transpose(image), where, log)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: not a picture, or not of a kind that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too large: {error}") from error
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else "damaged or truncated"
        raise DataError(f"{where}: {reason}") from error
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        raise DataError(f"{where}: damaged or truncated ({type(error).__name__})") from error


def _as_gray(image: Image.Image, where: str, log: Callable[[str], None]) -> np.ndarray:
    """(H, W) uint8, or float32 for 16 bits and for PIL's floats."""
    if image.mode.startswith("I;16"):
        return np.asarray(image, dtype=np.float32) / 65535
    if image.mode == "I":
        raise DataError(f"{where}: expected 8 or 16 bits per pixel, found 32 (PIL's mode I)")
    if image.mode == "F":
        return np.asarray(image)
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min(initial=255) < 255:
        raise DataError(f"{where}: partly transparent: lay it over a dark background first")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    image = image.convert("RGB")
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    if (red != green).any() or (green != blue).any():
        log(f"{where}: in colour, converted to grayscale")
    return np.asarray(image.convert("L"))


def _as_tensor(pixels: np.ndarray, where: str) -> Tensor:
    """Check pixels (H, W), (1, H, W) or (H, W, 1) and convert them to (1, H, W) float32 in [0, 1]."""
    shape = pixels.shape
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        pixels = pixels.reshape(shape[1:] if shape[0] == 1 else shape[:2])
    if pixels.ndim != 2:
        raise DataError(f"{where}: expected one channel: (H, W), (1, H, W) or (H, W, 1), found shape {shape}")
    if not pixels.size:
        raise DataError(f"{where}: empty, its shape is {shape}")
    if pixels.dtype == np.uint8:
        return utils.as_floats(torch.from_numpy(np.array(pixels)))[None]
    if pixels.dtype != np.bool_ and not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{where}: expected uint8, or floats in [0, 1], found {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: has pixels that are NaN or infinite")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        raise DataError(f"{where}: has pixels outside [0, 1], its range is [{low:.4g}, {high:.4g}]")
    return torch.from_numpy(np.array(pixels, dtype=np.float32))[None]


class Fitted(NamedTuple):
    """A picture brought to the networks' size, and where on it the original lies."""

    picture: Tensor  # (1, 48, 60)
    left: int
    top: int
    width: int
    height: int


def fit_picture(picture: Tensor) -> Fitted:
    """Bring a picture (1, H, W) to 48x60: shrink it if it is larger, keeping its proportions, and lay it in the middle
    of a frame of its median.

    Smaller pictures are not enlarged, since their digits most often have the size already. Of test digits cut out as
    28x28 pictures, a network trained for minutes named 90 % so, and 72 % when they were enlarged; around pictures of
    24x60 it named 92 % with the median, 89 % with black and 86 % with the border repeated.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, HEIGHT / height, WIDTH / width)
    rows, columns = (max(1, round(size * scale)) for size in (height, width))
    if (rows, columns) != (height, width):
        picture = F.interpolate(picture[None], (rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (HEIGHT - rows) // 2, (WIDTH - columns) // 2
    border = (left, WIDTH - columns - left, top, HEIGHT - rows - top)
    return Fitted(F.pad(picture, border, value=picture.median().item()), left, top, columns, rows)


# ---------------------------------------------------------------------------------------------- digits


class Digit(NamedTuple):
    """A digit that was found."""

    box: tuple[float, float, float, float]  # `xyxy`: left, top, right, bottom in pixels of the picture given
    category: int
    score: float  # in [0, 1]: the probability that there is a digit times that of its class


def find_digits(
    picture: Any,
    weights: str | Path | Trained = DEFAULT,
    threshold: float = 0.5,
    log: Callable[[str], None] = print,
) -> list[Digit]:
    """Find the digits in a grayscale picture, best first.

    picture: a file, PIL image, array or tensor, see `read_picture`; light digits on a darker background. Of another
    size than 48x60 it is fitted, see `fit_picture`, and boxes are in its own pixels; `log` is told.
    weights: "localization" (at most one digit, 0 to 9), "detection" (up to six digits, one in each cell of a 2x3
    grid, zeros and ones only), a file that `training.save_weights` wrote, or what `training.load_weights` read.
    threshold: digits whose presence is less probable are left out; so are those of which a better one of the same
    class was found at the same place.

    Raises DataError for a picture or weights that are not what they should be, ValueError for a threshold outside
    [0, 1].
    """
    if not isinstance(weights, Trained):
        weights = load_weights(WEIGHTS / f"{weights}.pt" if weights in TASKS else weights)
    return _find(read_picture(picture, log), _name(picture), weights, threshold, log)


def _find(picture: Tensor, where: str, weights: Trained, threshold: float, log: Callable[[str], None]) -> list[Digit]:
    """`find_digits` in what `read_picture` gave."""
    height, width = picture.shape[-2:]
    fitted = fit_picture(picture)
    if (height, width) != (HEIGHT, WIDTH):
        steps = [f"scaled to {fitted.height}x{fitted.width}"] * ((fitted.height, fitted.width) != (height, width))
        steps += [f"padded to {HEIGHT}x{WIDTH}"] * ((fitted.height, fitted.width) != (HEIGHT, WIDTH))
        log(f"{where}: {height}x{width} pixels (height x width), {' and '.join(steps)}")
    outputs = utils.infer(weights.network, fitted.picture[None], weights.normal)
    if not torch.isfinite(outputs).all():
        raise DataError(f"{weights.path}: weights: the network's outputs are not finite")
    found = utils.decode(outputs, threshold, OVERLAP)[0]
    corner = torch.tensor((fitted.left, fitted.top)).repeat(2)
    size = torch.tensor((width, height)).repeat(2)
    boxes = (found["boxes"] - corner) * size / torch.tensor((fitted.width, fitted.height)).repeat(2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres <= size[:2])).all(1)  # else it is in the frame, not in the picture
    boxes = torch.minimum(boxes.clamp(min=0), size)
    rows = (values[inside].tolist() for values in (boxes, found["labels"], found["scores"]))
    return [Digit(tuple(box), category, score) for box, category, score in zip(*rows, strict=True)]


def draw_digits(picture: Any, digits: Sequence[Digit]) -> Figure:
    """The picture with the boxes, classes and scores of its digits; `picture` as for `read_picture`."""
    texts = [f"{digit.category}  {digit.score:.2f}" for digit in digits]
    boxes = torch.tensor([digit.box for digit in digits]).reshape(-1, 4)
    return utils.draw_found(read_picture(picture, lambda text: None), boxes, texts)


# ---------------------------------------------------------------------------------------------- command


def choose_drawings(pictures: Sequence[Path], output: Path | None) -> list[Path]:
    """Where the drawing of each picture goes: `output`, or beside the picture.

    Raises ValueError where a drawing would take another's place or a picture's, or is not to be a PNG.
    """
    drawings = [output] if output else [path.with_name(f"{path.stem}_found.png") for path in pictures]
    if len(drawings) != len(pictures):
        raise ValueError(f"--output names one drawing, but there are {len(pictures)} pictures")
    if output and output.suffix != ".png":
        raise ValueError(f"--output: expected a name that ends in .png, found {str(output)!r}")
    taken = {path.resolve() for path in pictures}
    for drawing in drawings:
        if drawing.resolve() in taken:
            raise ValueError(f"{drawing}: the drawing would take the place of a picture, or of another's drawing")
        taken.add(drawing.resolve())
    return drawings


def main(arguments: Sequence[str] | None = None) -> int:
    """Find, print and draw the digits of some pictures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="picture", help="a picture, of any size")
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="localization (the default) finds at most one digit and tells ten classes apart; detection finds up to "
        "six, one in each cell of a 2x3 grid, but takes every digit for a 0 or a 1",
    )
    parser.add_argument("--weights", type=Path, help="a file of weights, instead of the task's in weights/")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a digit, by default 0.5")
    parser.add_argument("--output", type=Path, help="the drawing, a PNG; by default beside the picture, NAME_found.png")
    options = parser.parse_intermixed_args(arguments)  # pictures may follow options
    mpl.use("Agg")  # no window is opened
    forgive_output()

    def log(text: object) -> None:
        print(text, file=sys.stderr)

    try:
        drawings = choose_drawings(options.pictures, options.output)
        trained = load_weights(options.weights or WEIGHTS / f"{options.task or DEFAULT}.pt")
        if options.task and trained.task != TASKS[options.task]:
            raise ValueError(f"{trained.path}: holds a network for another task than {options.task}")
        if not 0 <= options.threshold <= 1:
            raise ValueError(f"--threshold: expected a number in [0, 1], found {options.threshold}")
    except (OSError, ValueError) as error:
        log(f"predict.py: {error}")
        return 2
    status = 0
    for path, drawing in zip(options.pictures, drawings, strict=True):
        try:
            picture = read_picture(path, log)
            digits = _find(picture, str(path), trained, options.threshold, log)
            utils.save_figure(draw_digits(picture, digits), drawing.parent, drawing.stem)
        except (OSError, ValueError) as error:  # the other pictures can still be done
            log(f"predict.py: {error}")
            status = 2
            continue
        for digit in digits:
            left, top, right, bottom = digit.box
            box = f"{left:.1f} {top:.1f} {right:.1f} {bottom:.1f}"
            print(f"{path}: class {digit.category}, score {digit.score:.3f}, box {box}")
        if not digits:
            print(f"{path}: no digit")
        log(f"{path}: drawn in {drawing}")
    return status


if __name__ == "__main__":
    sys.exit(main())
