"""What networks get wrong and why, and what they are set beside: measured on outputs and labels."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_convert, box_iou

import utils
from data import Split
from data.labels import CLASSES, COLUMNS, GRID, HEIGHT, ROWS, WIDTH, cells_to_image, find_cell, task_of, to_cells
from utils import Matches

ROUNDS = 1000  # of the bootstrap


BINS = 10  # of scores


OBJECT_IOU = 0.5  # from which on a box is counted as that of an object
SIDES = ("left", "top", "right", "bottom")


def bootstrap(outputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """95 % intervals of what `utils.score` measures, the loss apart: images are drawn anew, with replacement, ROUNDS
    times (Efron, 1979). The generator's seed is fixed."""
    matches = utils.match(outputs, labels)
    hit = matches.digit & matches.detected
    parts = (
        matches.correct,
        torch.ones_like(hit),
        matches.iou * hit,
        hit,
        matches.correct & matches.digit,
        matches.digit,
    )
    sums = torch.stack([part.double().reshape(len(labels), -1).sum(1) for part in parts], 1)  # (N, 6)
    rng = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [torch.randint(len(sums), (len(sums),), generator=rng).bincount(minlength=len(sums)) for _ in range(ROUNDS)]
    )
    right, rows, overlap, hits, named, digits = (draws.double() @ sums).T  # (ROUNDS,) each
    values = {"accuracy": right / rows, "iou": overlap / hits.clamp(min=1)}
    values |= {"digit_accuracy": named / digits.clamp(min=1), "iou_all": overlap / digits.clamp(min=1)}
    values["mean"] = (values["accuracy"] + values["iou"]) / 2
    limits = torch.tensor((0.025, 0.975), dtype=torch.float64)
    return {name: value.quantile(limits).tolist() for name, value in values.items()}


def count_objects(outputs: Tensor, labels: Tensor, nms_iou: float | None = None) -> dict[str, int]:
    """Boxes counted by objects, whatever cell they come from: "right" (of a true box's class, with an IoU of at least
    one half; the best first, each true box once), "false" and "missed"."""
    right = predicted = 0
    truth = utils.true_boxes(labels)
    for boxes, true in zip(utils.decode(outputs, nms_iou=nms_iou), truth, strict=True):
        ious = box_iou(boxes["boxes"], true["boxes"]) * (boxes["labels"][:, None] == true["labels"])
        free = torch.ones(len(true["labels"]))
        for row in ious:
            iou, place = (row * free).max(0) if len(free) else (torch.tensor(0.0), 0)
            if iou >= OBJECT_IOU:
                free[place] = 0
                right += 1
        predicted += len(boxes["labels"])
    return {"right": right, "false": predicted - right, "missed": sum(len(true["labels"]) for true in truth) - right}


def pixel_boxes(outputs: Tensor) -> Tensor:
    """Boxes of outputs or labels, a row per image (cell): (M, 4) `xyxy` in pixels. Where there is no digit they mean
    nothing."""
    if outputs.ndim == 4 and outputs.shape[1] == 6:
        outputs = outputs.movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
    rows = cells_to_image(outputs).reshape(-1, 6) if outputs.ndim == 4 else outputs
    return box_convert(rows[:, 1:5], "cxcywh", "xyxy") * rows.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))


def edge_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many pixels the predicted edges lie to the right of (below) the true ones, for each digit that is found:
    (K, 4), left, top, right, bottom."""
    matches = utils.match(outputs, labels)
    return (pixel_boxes(outputs) - pixel_boxes(labels))[matches.digit & matches.detected]


def edge_rows(errors: Tensor) -> list[tuple[str, float, float, float, float]]:
    """For each side, and for all: the share of edges that are right to the pixel, within one and within two pixels, and
    the mean distance in pixels. Edges that were not snapped to whole pixels count as the nearest."""
    columns = dict(zip(SIDES, errors.T, strict=True)) | {"all": errors.flatten()}
    rows = []
    for name, values in columns.items():
        off = values.round().abs()
        count = max(1, off.numel())
        shares = [(off <= most).sum().item() / count for most in (0, 1, 2)]
        rows.append((name, *shares, values.abs().sum().item() / count))
    return rows


def border_distances(rows: Tensor) -> Tensor:
    """Detection: how many pixels the centre of each box, of outputs or labels, lies from the nearest border between two
    cells, (M,)."""
    left, top, right, bottom = pixel_boxes(rows).T
    distances = []
    for centre, size, count in (((left + right) / 2, WIDTH, COLUMNS), ((top + bottom) / 2, HEIGHT, ROWS)):
        borders = torch.arange(1, count) * (size / count)
        distances.append((centre[:, None] - borders).abs().amin(1))
    return torch.minimum(*distances).round(decimals=3)  # half pixels, not exact in fractions of the image


def border_rows(outputs: Tensor, labels: Tensor) -> list[tuple[str, int, int, int, str, int]]:
    """Detection: digits by the distance of their centre to a border between cells: how many there are, are missed, are
    named wrongly, and the share that is either; and the false positives whose box has its centre so far from one."""
    matches, true, claimed = utils.match(outputs, labels), border_distances(labels), border_distances(outputs)
    wrong = matches.digit & matches.detected & ~matches.correct
    rows = []
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, np.inf)):
        mine = matches.digit & (true >= low) & (true < high)
        digits, missed, misnamed = (int((mine & kind).sum()) for kind in (mine, ~matches.detected, wrong))
        alarms = int((matches.detected & ~matches.digit & (claimed >= low) & (claimed < high)).sum())
        said = f"{low:g} to below {high:g} pixels" if high < np.inf else f"{low:g} pixels or more"
        rows.append((said, digits, missed, misnamed, f"{(missed + misnamed) / max(1, digits):.2%}", alarms))
    return rows


def piece_rows(outputs: Tensor, split: Split) -> list[tuple[str, int, str, float, int, int, int]]:
    """Made data: digits by whether their ink is one piece or several: how many there are, the share found and named,
    the mean IoU of those found, how many boxes overlap the true one by less than half, how many edges are off by three
    pixels or more, and how many of these lie too far in. Nothing where that is not known."""
    if split.pieces is None:
        return []
    matches, rows = utils.match(outputs, split.labels), []
    hit, pieces = matches.digit & matches.detected, split.pieces.flatten()
    inwards = edge_errors(outputs, split.labels).round() * torch.tensor((1, 1, -1, -1))
    for name, mine in (("one piece", pieces == 1), ("several pieces", pieces > 1)):
        count, found = int(mine.sum()), mine & hit
        if count:
            named = f"{(found & matches.correct).sum() / count:.2%}"
            iou = matches.iou[found].sum().item() / max(1, int(found.sum()))
            poor = int((matches.iou[found] < POOR_IOU).sum())
            off = [int((each[found[hit]] >= 3).sum()) for each in (inwards.abs(), inwards)]
            rows.append((name, count, named, iou, poor, *off))
    return rows


def calibration(outputs: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """How far scores can be believed: for each bin of the predicted boxes' score that holds any, its mean, the
    share of them that are right, and how many there are."""
    matches, (rows, _) = utils.match(outputs, labels), utils.flatten_cells(outputs, labels)
    named = rows[:, 5:].softmax(1).amax(1) if task_of(labels) == "loc" else rows[:, 5].abs().sigmoid()
    scores = rows[:, 0].sigmoid() * named
    place = (scores * BINS).long().clamp(max=BINS - 1)
    found = []
    for number in range(BINS):
        mine = matches.detected & (place == number)
        if mine.any():
            right = (matches.correct & mine).sum() / mine.sum()
            found.append((scores[mine].mean().item(), right.item(), int(mine.sum())))
    return found


def pick_confused(matches: Matches) -> tuple[Tensor, list[str]]:
    """Localization: images of the two commonest confusions, the first three of each, and which they are."""
    wrong = matches.digit & matches.detected & ~matches.correct
    pair = matches.true_class_id * 10 + matches.class_id
    commonest = pair[wrong].bincount(minlength=100).argsort(descending=True, stable=True)[:2].tolist()
    chosen = [(wrong & (pair == one)).nonzero()[:3, 0] for one in commonest]
    said = [f"{one // 10} taken for {one % 10}" for one, mine in zip(commonest, chosen, strict=True) if len(mine)]
    return torch.cat(chosen), said


POOR_IOU = 0.5  # a found digit whose box overlaps the true one by less counts as poorly placed


def failures(matches: Matches) -> dict[str, Tensor]:
    """What can go wrong, (M,) bool each, in the rows of `matches`: exclusive kinds, the gravest first."""
    hit = matches.digit & matches.detected
    wrong = hit & (matches.class_id != matches.true_class_id)
    return {
        "missed": matches.digit & ~matches.detected,
        "false positive": matches.detected & ~matches.digit,
        "wrong class": wrong,
        "poor box": hit & ~wrong & (matches.iou < POOR_IOU),
    }


def confusion(matches: Matches, classes: int) -> Tensor:
    """(classes + 1, classes + 1) counts, true by predicted; the last row and column stand for "no digit"."""
    true = torch.where(matches.digit, matches.true_class_id, classes)
    predicted = torch.where(matches.detected, matches.class_id, classes)
    return torch.bincount(true * (classes + 1) + predicted, minlength=(classes + 1) ** 2).reshape(classes + 1, -1)


def per_class(matches: Matches, classes: int) -> list[dict[str, Any]]:
    """For each class, and for "none": how many, accuracy, share found, and mean IoU of those found."""
    rows = []
    for class_id in [*range(classes), None]:
        mine = ~matches.digit if class_id is None else matches.true_class_id == class_id
        hit = mine & matches.detected & matches.digit
        rows.append(
            {
                "class": "none" if class_id is None else str(class_id),
                "count": int(mine.sum()),
                "accuracy": (matches.correct & mine).sum().item() / max(1, int(mine.sum())),
                "found": (matches.detected & mine).sum().item() / max(1, int(mine.sum())),
                "iou": matches.iou[hit].mean().item() if hit.any() else None,
            }
        )
    return rows


def pick_examples(labels: Tensor, per_class: int) -> Tensor:
    """Indices of the first `per_class` images that show each class, class by class, and then of those that are
    empty, if any; an image is picked once."""
    rows = labels.reshape(len(labels), -1, 6)
    shown = torch.where(rows[..., 0] > 0, rows[..., 5], -1)  # (N, cells)
    picked: list[int] = []
    for class_id in shown[shown >= 0].unique().tolist():
        having = (shown == class_id).any(1).nonzero()[:, 0].tolist()
        picked += [number for number in having if number not in picked][:per_class]
    picked += (rows[..., 0] == 0).all(1).nonzero()[:per_class, 0].tolist()
    return torch.tensor(picked)


def pick_by_count(labels: Tensor, each: int) -> Tensor:
    """Detection: indices of the first `each` images with one, two, three ... digits."""
    counts = labels[..., 0].sum((1, 2))
    return torch.cat([(counts == count).nonzero()[:each, 0] for count in counts.unique().tolist()])


def pick_failures(matches: Matches, images: int, count: int) -> Tensor:
    """Indices of up to `count` images with a failure, the kinds of `failures` in turn; where there are too few,
    then those whose found digits have the lowest IoU. `images` is how many images the matches are of."""
    hit = matches.digit & matches.detected
    kinds = [kind.reshape(images, -1).any(1).nonzero()[:, 0].tolist() for kind in failures(matches).values()]
    lowest = torch.where(hit, matches.iou, 2.0).reshape(images, -1).amin(1)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(kind[:count] for kind in kinds)))
    poorest = [number for number in lowest.argsort()[:count].tolist() if lowest[number] <= 1]
    chosen = dict.fromkeys([number for number in turns if number is not None] + poorest)
    return torch.tensor(list(chosen)[:count], dtype=torch.long)


def describe_confusion(matrix: Tensor) -> str:
    """The commonest mistakes of a confusion matrix, in a few lines."""
    classes = len(matrix) - 1
    wrong = matrix.clone().fill_diagonal_(0)
    lines = [
        f"missed digits: {int(wrong[:classes, classes].sum()):,} of {int(matrix[:classes].sum()):,}; "
        f"false positives: {int(wrong[classes, :classes].sum()):,} of {int(matrix[classes].sum()):,} without a digit"
    ]
    named = wrong[:classes, :classes]
    for place in named.flatten().argsort(descending=True, stable=True)[:3].tolist():
        true, predicted = divmod(place, classes)
        if named[true, predicted]:
            lines.append(
                f"{true} taken for {predicted}: {int(named[true, predicted]):,} of {int(matrix[true].sum()):,}"
            )
    return "\n".join(lines)


def on_whole_pixels(labels: Tensor) -> bool:
    """Whether every edge of every box lies on a border between two pixels, to a thousandth of a pixel."""
    edges = torch.cat([each["boxes"] for each in utils.true_boxes(labels)])
    return bool(((edges - edges.round()).abs() < 1e-3).all())


# ---------------------------------------------------------------------------------------------- baselines

SURE = 20.0  # a logit that leaves no doubt
SMALLEST = 5  # pixels; smaller patches are noise
CHOSEN_ON = 2000  # training images


@dataclass(frozen=True)
class BrightPatches:
    """Connected bright pixels: in localization the largest patch, in detection each.

    Nothing is learnt but three numbers, and in localization, where nothing is known of the class, which is commonest.
    In detection a patch with a hole is a 0, another a 1.
    """

    threshold: int  # of 255, from which on a pixel is bright
    least: int  # pixels that a patch needs
    grow: int  # pixels by which each side of the box is moved outwards
    class_id: int = 0  # in localization

    @classmethod
    def fit(cls, train: Split) -> "BrightPatches":
        """The numbers with the highest mean accuracy on some of the training images."""
        part, common = train[:CHOSEN_ON], most_common(train)
        best, highest = None, -1.0
        for threshold in (200, 215, 230, 240, 250, 255):
            patches = find_patches(part, threshold)
            for least, grow in itertools.product((5, 10, 20, 30), (0, 1, 2)):
                each = cls(threshold, least, grow, common)
                mean = utils.score(each._answer(part, patches), part.labels)["mean"]
                if mean > highest:
                    best, highest = each, mean
        return best

    def outputs(self, split: Split) -> Tensor:
        """What a network would put out, (N, 15) or (N, 6, 2, 3)."""
        return self._answer(split, find_patches(split, self.threshold))

    def _answer(self, split: Split, patches: Tensor) -> Tensor:
        image, _, left, right, top, bottom, whole = patches[patches[:, 1] >= self.least].T
        left, top = ((edge - self.grow).clamp(min=0) for edge in (left, top))
        right, bottom = ((right + self.grow).clamp(max=WIDTH - 1), (bottom + self.grow).clamp(max=HEIGHT - 1))
        class_id = whole if split.task == "det" else torch.full_like(whole, self.class_id)
        box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
        rows = torch.stack((torch.ones_like(whole), *box, class_id), 1)
        return as_outputs(rows, image.long(), split)  # the largest come last, and stay


def find_patches(split: Split, threshold: int) -> Tensor:
    """Connected pixels of at least `threshold` of 255, from the smallest patch to the largest: (M, 7) float64 of
    image, pixels, left, right, top, bottom, and 1 where it has no hole."""
    images = (utils.as_floats(split.images)[:, 0] * 255).round().byte().numpy()
    # Pixels that touch, corners included, belong together, but not those of two images.
    touch = np.zeros((3, 3, 3), dtype=bool)
    touch[1] = True
    patches, count = ndimage.label(images >= threshold, touch)
    sizes = np.bincount(patches.ravel(), minlength=count + 1)
    places, rows = ndimage.find_objects(patches), []
    for number in np.argsort(sizes[1:], kind="stable") + 1:
        if sizes[number] < SMALLEST:
            continue
        image, down, across = places[number - 1]
        patch = patches[image.start, down, across] == number
        whole = split.task == "loc" or ndimage.binary_fill_holes(patch).sum() == sizes[number]
        edges = across.start, across.stop - 1, down.start, down.stop - 1
        rows.append((image.start, sizes[number], *edges, whole))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)


def most_common(train: Split) -> int:
    """The class that most digits have."""
    rows = train.labels.reshape(-1, 6)
    return int(rows[rows[:, 0] == 1, 5].long().bincount().argmax())


def trivial_outputs(train: Split, split: Split) -> Tensor:
    """Whatever the image: a digit if most images (cells) hold one, the mean box, the commonest class."""
    rows = train.labels.reshape(-1, 6)
    mean = rows[rows[:, 0] == 1].mean(0)
    mean[0], mean[5] = rows[:, 0].mean().round(), most_common(train)
    labels = mean.repeat(len(split), *GRID[split.task], 1)
    return labels_as_outputs(labels, always=True)


def visible_outputs(split: Split) -> Tensor:
    """An oracle's answer for generated images: everything right, but the box is drawn around the pixels of the digit
    that are brighter than the noise under them. Of faint strokes more cannot be seen."""
    return labels_as_outputs(split.visible)


def visible_rows(split: Split, digits: Sequence[int] = (0, 1)) -> list[tuple[str, str, float]]:
    """Generated images: of each of some digits the mean size, and the mean IoU of the box around its visible ink."""
    if split.visible is None:
        return []
    truth = utils.true_boxes(split.labels)
    boxes, classes = (torch.cat([each[key] for each in truth]) for key in ("boxes", "labels"))
    rows = per_class(utils.match(visible_outputs(split), split.labels), CLASSES[split.task])
    sizes = [(boxes[:, 2:] - boxes[:, :2])[classes == digit].mean(0).tolist() for digit in digits]
    return [(str(digit), f"{w:.1f} × {h:.1f}", rows[digit]["iou"]) for digit, (w, h) in zip(digits, sizes, strict=True)]


def as_outputs(rows: Tensor, image: Tensor, split: Split) -> Tensor:
    """Digits (M, 6) in fractions of the images (M,) -> outputs; of several in one place the last stays."""
    labels = torch.zeros(len(split), *GRID[split.task], 6, dtype=torch.float64)
    at = (image,)
    if split.task == "det":
        column, row = find_cell(rows[:, 1], rows[:, 2])
        rows, at = to_cells(rows, column, row), (image, row.long(), column.long())
    labels.numpy()[tuple(index.numpy() for index in at)] = rows.numpy()  # of equal places numpy keeps the last
    return labels_as_outputs(labels)


def labels_as_outputs(labels: Tensor, always: bool = False) -> Tensor:
    """Labels (N, 6) or (N, 2, 3, 6) -> outputs of a network that is sure of them; with `always` boxes are given where
    there is no digit, too."""
    digit = labels[..., :1] > 0
    boxes = torch.where(digit | always, labels[..., 1:5], 0.5)
    logits = torch.where(digit, SURE, -SURE)
    class_id = torch.where(digit, labels[..., 5:], 0.0)
    if labels.ndim == 2:
        named = torch.nn.functional.one_hot(class_id[:, 0].long(), CLASSES["loc"]) * SURE
        return torch.cat((logits, boxes, named), 1).float()
    return torch.cat((logits, boxes, SURE * (2 * class_id - 1)), -1).movedim(-1, 1).float()
