"""Finds handwritten digits in anybody's picture with the weights that come with the project.

python predict.py picture.png                     every digit, 0 to 9
python predict.py picture.png --task detection    zeros and ones only

It prints class, score and box (left, top, right, bottom in pixels of the picture) of each digit, and draws them.
The networks have seen light digits, 10 to 30 pixels high, on a darker, noisy background of 48x60 pixels. Such a picture
they are shown as it is. In all others, dark ink is told from light and the ground from its shadows, and every piece of
ink is cut out, brought to that size and shown alone; what was done is said.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import models
import pictures
import pieces
import utils
from data import DataError
from data.labels import HEIGHT, WIDTH
from pictures import Picture
from pieces import HIGH, Piece
from training import plots
from training.progress import forgive_output
from training.runs import Trained, load_weights

TASKS = {"localization": "loc", "detection": "det"}
NETWORKS = {name: models.OURS[task].__name__ for name, task in TASKS.items()}
# A seven is no zero or one, but detection cannot say so: one digit too few is better than a wrong one.
DEFAULT = "localization"
OVERLAP = 0.5  # IoU above which two boxes of one class are one digit, on the border of two cells and found in both
WEIGHTS = Path(__file__).resolve().parent / "weights"

# ---------------------------------------------------------------------------------------------- pictures


def read_picture(picture: Any, log: Callable[[str], None] = print) -> Tensor:
    """A picture as (1, H, W) float32 in [0, 1], 0 being black.

    picture: a file, by name or open, a PIL image, or an array or tensor (H, W), with 1, 3 or 4 channels before or after
    that: whole numbers from 0 to 255, 16 bits, bool, or floats in [0, 1]. Colour is converted to grayscale, transparent
    pixels are laid over what contrasts with the ink, and of a file with several pictures the first is taken; `log` is
    told. A file's picture is turned as its EXIF orientation asks.

    Raises DataError where it is none of these, unreadable, empty, or not finite numbers in that range.
    """
    return pictures.read(picture, _name(picture), log, None).gray


def _name(picture: Any) -> str:
    """What messages call a picture."""
    return str(picture) if isinstance(picture, (str, Path)) else "picture"


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
    """Find the digits in anybody's picture, best first.

    picture: a file, PIL image, array or tensor, see `read_picture`. One with the training pictures' noise goes to the
    network as it is, fitted to 48x60 (`fit_picture`) where it has another size; of all others the pieces of ink,
    dark or light, are cut out and shown to the network one by one. Boxes are in the picture's own pixels. `log` is told
    what was done.
    weights: "localization" (ten classes; in a noisy picture at most one digit), "detection" (zeros and ones only; in a
    noisy picture up to six, one in each cell of a 2x3 grid), a file that `training.save_weights` wrote, or what
    `training.load_weights` read.
    threshold: digits whose presence is less probable are left out, and, unless the network saw the picture as it is,
    those whose score is less; so are those of which a better one of the same class was found at the same place.

    Raises DataError for a picture or weights that are not what they should be, ValueError for a threshold outside
    [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    if not isinstance(weights, Trained):
        weights = load_weights(WEIGHTS / f"{NETWORKS[weights]}.pt" if weights in TASKS else weights)
    where = _name(picture)
    return _find(pictures.read(picture, where, log), where, weights, threshold, log)


def _find(picture: Picture, where: str, weights: Trained, threshold: float, log: Callable[[str], None]) -> list[Digit]:
    """`find_digits` in what was read."""
    gray = picture.gray
    fitted = fit_picture(gray)
    rows, columns = slice(fitted.top, fitted.top + fitted.height), slice(fitted.left, fitted.left + fitted.width)
    noisy = pieces.as_trained_on(fitted.picture[:, rows, columns])
    if noisy:
        shown, notes = noisy
        certain = threshold if notes else 0.0  # changed, noise may be another than it was trained on
        size = fitted.height, fitted.width
        notes += [f"scaled to {fitted.height}x{fitted.width}"] * (size != gray.shape[1:])
        notes += [f"padded to {HEIGHT}x{WIDTH}"] * (size != (HEIGHT, WIDTH))
        digits = [each for each in _find_in_noise(fit_picture(shown), weights, threshold) if each.score >= certain]
        scale = picture.width / fitted.width, picture.height / fitted.height
    else:
        found = pieces.find_pieces(picture)
        count = len(found.pieces)
        notes = found.notes + [f"{count} piece{'s' * (count > 1)} of ink, cut out"] * (count > 0)
        digits = [digit for piece in found.pieces if (digit := _name_piece(piece, weights)).score >= threshold]
        scale = picture.width / gray.shape[2], picture.height / gray.shape[1]
    if notes:
        log(f"{where}: {picture.height}x{picture.width} pixels (height x width), {', '.join(notes)}")
    digits = [digit._replace(box=_scaled(digit.box, *scale)) for digit in digits]
    return sorted(digits, key=lambda digit: -digit.score)


def _scaled(box: Sequence[float], x: float, y: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return left * x, top * y, right * x, bottom * y


def _find_in_noise(fitted: Fitted, weights: Trained, threshold: float) -> list[Digit]:
    """The digits of a picture like the training pictures, boxes in pixels of what was fitted."""
    found = utils.decode(_ask(fitted.picture[None], weights), threshold, OVERLAP)[0]
    size = torch.tensor((fitted.width, fitted.height))
    boxes = found["boxes"] - torch.tensor((fitted.left, fitted.top)).repeat(2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres <= size)).all(1)  # else it is in the frame, not in the picture
    boxes = torch.minimum(boxes.clamp(min=0), size.repeat(2))
    rows = (values[inside].tolist() for values in (boxes, found["labels"], found["scores"]))
    return [Digit(tuple(box), category, score) for box, category, score in zip(*rows, strict=True)]


def _name_piece(piece: Piece, weights: Trained) -> Digit:
    """A piece of ink as the network sees it in six places and three sizes: the class with the highest mean score."""
    centres = [(x, y) for y in (HEIGHT / 4, HEIGHT * 3 / 4) for x in (WIDTH / 6, WIDTH / 2, WIDTH * 5 / 6)]  # of cells
    shown = torch.stack([pieces.pose(piece, HIGH[i % 3], centre) for i, centre in enumerate(centres)])
    votes = torch.zeros(10)
    for centre, found in zip(centres, utils.decode(_ask(shown, weights), 0.0), strict=True):
        middles = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
        near = ((middles - torch.tensor(centre)).abs() < HIGH[0] / 2).all(1).nonzero()[:, 0]
        if len(near):  # its best answer at this place
            votes[found["labels"][near[0]]] += found["scores"][near[0]] / len(centres)
    return Digit(piece.box, int(votes.argmax()), votes.max().item())


def _ask(shown: Tensor, weights: Trained) -> Tensor:
    """The network's outputs for pictures (N, 1, 48, 60)."""
    outputs = utils.infer(weights.network, shown)
    if not torch.isfinite(outputs).all():
        raise DataError(f"{weights.path}: weights: the network's outputs are not finite")
    return outputs


def draw_digits(picture: Any, digits: Sequence[Digit]) -> Figure:
    """The picture with the boxes, classes and scores of its digits; `picture` as for `read_picture`."""
    return _draw(pictures.read(picture, _name(picture), lambda text: None), digits)


def _draw(picture: Picture, digits: Sequence[Digit]) -> Figure:
    """`draw_digits` on what was read."""
    gray = picture.gray
    scale = torch.tensor((gray.shape[2] / picture.width, gray.shape[1] / picture.height)).repeat(2)
    boxes = torch.tensor([digit.box for digit in digits]).reshape(-1, 4) * scale
    return utils.draw_detections(gray, boxes, [f"{digit.category}  {digit.score:.2f}" for digit in digits])


# ---------------------------------------------------------------------------------------------- command


def choose_drawings(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """Where the drawing of each picture goes: `output`, or beside the picture.

    Raises ValueError where a drawing would take another's place or a picture's, or is not to be a PNG.
    """
    drawings = [output] if output else [path.with_name(f"{path.stem}_found.png") for path in paths]
    if len(drawings) != len(paths):
        raise ValueError(f"--output names one drawing, but there are {len(paths)} pictures")
    if output and output.suffix != ".png":
        raise ValueError(f"--output: expected a name that ends in .png, found {str(output)!r}")
    taken = {path.resolve() for path in paths}
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
        help="localization (the default) tells ten classes apart, and finds at most one digit in a noisy picture; "
        "detection finds up to six there, one in each cell of a 2x3 grid, but takes every digit for a 0 or a 1",
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
        trained = load_weights(options.weights or WEIGHTS / f"{NETWORKS[options.task or DEFAULT]}.pt")
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
            picture = pictures.read(path, str(path), log)
            digits = _find(picture, str(path), trained, options.threshold, log)
            for digit in digits:
                left, top, right, bottom = digit.box
                box = f"{left:.1f} {top:.1f} {right:.1f} {bottom:.1f}"
                print(f"{path}: class {digit.category}, score {digit.score:.3f}, box {box}")
            if not digits:
                print(f"{path}: no digit")
            plots.save_figure(_draw(picture, digits), drawing.parent, drawing.stem)
            log(f"{path}: drawn in {drawing}")
        except (OSError, ValueError) as error:  # the other pictures can still be done
            log(f"predict.py: {error}")
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
