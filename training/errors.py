"""What a network gets wrong, and why: measured and drawn on outputs and labels."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.ops import box_convert

import utils
from data import Split
from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH, cells_to_picture, task_of
from utils import PAGE, PREDICTED, Matches

ROUNDS = 1000  # of the bootstrap
BINS = 10  # of scores
SIDES = ("left", "top", "right", "bottom")


def bootstrap(outputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """95 % intervals of what `utils.score` measures, the loss apart: pictures are drawn anew, with replacement, ROUNDS
    times (Efron, 1979). The generator's seed is fixed."""
    matches = utils.match(outputs, labels)
    hit = matches.digit & matches.found
    parts = (matches.right, torch.ones_like(hit), matches.iou * hit, hit, matches.right & matches.digit, matches.digit)
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


def pixel_boxes(outputs: Tensor) -> Tensor:
    """Boxes of outputs or labels, a row per picture (cell): (M, 4) `xyxy` in pixels. Where there is no digit they mean
    nothing."""
    if outputs.ndim == 4 and outputs.shape[1] == 6:
        outputs = outputs.movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
    rows = cells_to_picture(outputs).reshape(-1, 6) if outputs.ndim == 4 else outputs
    return box_convert(rows[:, 1:5], "cxcywh", "xyxy") * rows.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))


def edge_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many pixels the predicted edges lie to the right of (below) the true ones, for each digit that is found:
    (K, 4), left, top, right, bottom."""
    matches = utils.match(outputs, labels)
    return (pixel_boxes(outputs) - pixel_boxes(labels))[matches.digit & matches.found]


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
    return torch.minimum(*distances).round(decimals=3)  # half pixels, not exact in fractions of the picture


def border_rows(outputs: Tensor, labels: Tensor) -> list[tuple[str, int, int, int, str, int]]:
    """Detection: digits by the distance of their centre to a border between cells: how many there are, are missed, are
    named wrongly, and the share that is either; and the false alarms whose box has its centre so far from one."""
    matches, true, claimed = utils.match(outputs, labels), border_distances(labels), border_distances(outputs)
    wrong = matches.digit & matches.found & ~matches.right
    rows = []
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, np.inf)):
        mine = matches.digit & (true >= low) & (true < high)
        digits, missed, misnamed = (int((mine & kind).sum()) for kind in (mine, ~matches.found, wrong))
        alarms = int((matches.found & ~matches.digit & (claimed >= low) & (claimed < high)).sum())
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
    hit, pieces = matches.digit & matches.found, split.pieces.flatten()
    inwards = edge_errors(outputs, split.labels).round() * torch.tensor((1, 1, -1, -1))
    for name, mine in (("one piece", pieces == 1), ("several pieces", pieces > 1)):
        count, found = int(mine.sum()), mine & hit
        if count:
            named = f"{(found & matches.right).sum() / count:.2%}"
            iou = matches.iou[found].sum().item() / max(1, int(found.sum()))
            poor = int((matches.iou[found] < utils.POOR_IOU).sum())
            off = [int((each[found[hit]] >= 3).sum()) for each in (inwards.abs(), inwards)]
            rows.append((name, count, named, iou, poor, *off))
    return rows


def calibration(outputs: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """How far scores can be believed: for each bin of the predicted boxes' score that holds any, its mean, the
    share of them that are right, and how many there are."""
    matches, (rows, _) = utils.match(outputs, labels), utils.as_pictures(outputs, labels)
    named = rows[:, 5:].softmax(1).amax(1) if task_of(labels) == "loc" else rows[:, 5].abs().sigmoid()
    scores = rows[:, 0].sigmoid() * named
    place = (scores * BINS).long().clamp(max=BINS - 1)
    found = []
    for number in range(BINS):
        mine = matches.found & (place == number)
        if mine.any():
            right = (matches.right & mine).sum() / mine.sum()
            found.append((scores[mine].mean().item(), right.item(), int(mine.sum())))
    return found


def plot_errors(outputs: Tensor, split: Split) -> Figure:
    """Edges' errors side by side, IoU against that of the visible ink's box where that is known, and calibration."""
    labels, matches = split.labels, utils.match(outputs, split.labels)
    hit = matches.digit & matches.found
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 4.2))
    errors, steps = edge_errors(outputs, labels).round().clamp(-5, 5), np.arange(-5, 6)
    for number, side in enumerate(SIDES):
        shares = [(errors[:, number] == step).float().mean().item() or np.nan for step in steps]  # 0 has no logarithm
        left.plot(steps, shares, "o-", label=side, color=f"C{number}")
    left.set(title="edges", xlabel="predicted − true, pixels (±5: or more)", ylabel="share of found digits")
    left.set(yscale="log", xticks=steps)
    left.legend(frameon=False, loc="upper left", fontsize=11.5, handlelength=1.2)
    if split.visible is not None:
        faint = utils.box_ious(*(utils.as_pictures(outputs, each)[1][:, 1:5] for each in (split.visible, labels)))
        edges = np.arange(0.4, 1.01, 0.1)
        middles, means, low, high, oracle = [], [], [], [], []
        for start, stop in itertools.pairwise(edges):
            mine = hit & (faint >= start) & (faint < stop + 1e-6)
            if mine.sum() >= 5:
                middles.append((start + stop) / 2)
                means.append(matches.iou[mine].mean().item())
                low.append(matches.iou[mine].quantile(0.25).item())
                high.append(matches.iou[mine].quantile(0.75).item())
                oracle.append(faint[mine].mean().item())
        middle.plot(middles, means, "o-", color=PREDICTED, label="network, mean")
        middle.fill_between(middles, low, high, color=PREDICTED, alpha=0.2, label="network, middle half")
        middle.plot(middles, oracle, "^:", color="dimgrey", label="visible ink")
        middle.legend(frameon=False, loc="lower right")
    middle.set(title="faint digits", xlabel="IoU of the box around the visible ink", ylabel="IoU with the true box")
    believed = calibration(outputs, labels)
    right.plot([0, 1], [0, 1], ":", color="dimgrey")
    right.plot([x for x, _, _ in believed], [y for _, y, _ in believed], "o-", color=PREDICTED)
    for number, (x, y, count) in enumerate(believed):  # neighbours may be close
        if number == len(believed) - 1:
            shift, side = (0, 8), "center"
        elif number and x - believed[number - 1][0] < 0.08:
            shift, side = (7, -11), "left"
        else:
            shift, side = (-7, 1), "right"
        right.annotate(f"{count:,}", (x, y), shift, textcoords="offset points", ha=side, fontsize=11)
    right.set(title="calibration (numbers: boxes)", xlabel="score", ylabel="share named rightly", ylim=(-0.05, 1.1))
    return figure


def pick_confused(matches: Matches) -> tuple[Tensor, list[str]]:
    """Localization: pictures of the two commonest confusions, the first three of each, and which they are."""
    wrong = matches.digit & matches.found & ~matches.right
    pair = matches.true_category * 10 + matches.category
    commonest = pair[wrong].bincount(minlength=100).argsort(descending=True, stable=True)[:2].tolist()
    chosen = [(wrong & (pair == one)).nonzero()[:3, 0] for one in commonest]
    said = [f"{one // 10} taken for {one % 10}" for one, mine in zip(commonest, chosen, strict=True) if len(mine)]
    return torch.cat(chosen), said


@torch.inference_mode()
def plot_places(network: nn.Module, split: Split, normal: utils.Normalizer) -> Figure:
    """Where a `GridNetwork` looks: the weights of its places over each picture, the place's share in the answer of its
    cell times the presence of a digit there."""
    network = getattr(network, "network", network)
    device = next(network.parameters()).device
    certainty = network.head(network.backbone(normal(split.pictures.to(device))))[:, 0].float().cpu()  # (N, 12, 15)
    cells = certainty.unflatten(2, (network.columns, -1)).unflatten(1, (network.rows, -1)).movedim(3, 2)
    sums = cells.flatten(3).logsumexp(3)[..., None, None]
    weights = ((cells - sums).exp() * sums.sigmoid()).movedim(2, 3).reshape(certainty.shape)
    figure, axes = plt.subplots(1, len(split), figsize=(PAGE, 2.4), squeeze=False)
    for axis, picture, weight in zip(axes[0], split.pictures, weights, strict=True):
        utils.show_picture(axis, picture)
        shade = weight.numpy()
        axis.imshow(np.ones_like(shade), cmap="autumn", alpha=np.sqrt(shade / max(shade.max(), 1e-6)) * 0.75,
                    extent=(0, WIDTH, HEIGHT, 0))  # fmt: skip
    figure.suptitle("Weights of the places")
    return figure
