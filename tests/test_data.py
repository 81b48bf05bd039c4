"""Made data, the course's files, sources of digits, and files: what they must be, and what is refused."""

import math
import os
import pickle
import socket
import threading
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import data
from data import DataError, files, labels, perturb, sources

RAW_MNIST = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
MNIST_IS_HERE = all((data.FOLDER / "MNIST" / "raw" / name).is_file() for name in RAW_MNIST)
TASKS = ("loc", "det")


@pytest.fixture(autouse=True)
def no_source_named_outside(monkeypatch):
    monkeypatch.delenv("DATA_SOURCE", raising=False)


def silence(text):
    pass


# --- the table of checks ----------------------------------------------------------------------------------------------

# Per task: mean and standard deviation of the pixels, autocorrelation of the background at some distances in pixels,
# and the mean box in pixels, with how far off each may be.
PIXELS = {"loc": (0.418, 0.215), "det": (0.308, 0.207)}
AUTOCORRELATION = {
    "loc": {1: 0.69, 2: 0.54, 3: 0.36, 4: 0.22, 6: 0.06},
    "det": {1: 0.56, 2: 0.45, 3: 0.31, 4: 0.19, 6: 0.06},
}
BOX_WIDTH, BOX_HEIGHT = 15.5, 19.3


@pytest.fixture(
    scope="module",
    params=[(source, task) for source in ("digits", "mnist") for task in TASKS],
    ids=lambda pair: "-".join(pair),
)
def made(request, tmp_path_factory):
    """The splits of a source and task, large enough for means to be within the tolerances by more than luck."""
    source, task = request.param
    folder = tmp_path_factory.mktemp(f"{source}-{task}")
    if source == "mnist":
        if not MNIST_IS_HERE:
            pytest.skip("MNIST's raw files are not in data/MNIST/raw")
        (folder / "MNIST").symlink_to(data.FOLDER / "MNIST")
    return data.load(task, source, sizes=(2500, 200, 200), folder=folder, say=silence)


def boxes_of(split):
    """Per picture its boxes (k, 4) [x, y, w, h] in pixels."""
    pixels = torch.tensor((60, 48, 60, 48), dtype=torch.float64)
    lists = split.lists if split.lists is not None else [row[None][row[None, 0] == 1] for row in split.labels]
    return [boxes[:, 1:5].double() * pixels for boxes in lists]


def autocorrelation(pictures, distance):
    """Correlation of pixels `distance` apart, along rows and along columns."""
    z = (pictures - pictures.mean()).double()
    along_rows = (z[..., distance:] * z[..., :-distance]).mean()
    along_columns = (z[..., distance:, :] * z[..., :-distance, :]).mean()
    return float(along_rows / z.var()), float(along_columns / z.var())


def test_pixel_mean_and_standard_deviation(made):
    pixels = made.train.pictures.float() / 255
    mean, std = PIXELS[made.task]
    assert float(pixels.mean()) == pytest.approx(mean, abs=0.005)
    assert float(pixels.std()) == pytest.approx(std, abs=0.008)


@pytest.mark.parametrize("task", TASKS)
def test_background(task):
    noise = perturb.make_noise(300, perturb.NOISE[task], np.random.default_rng(0))
    assert noise.shape == (300, 48, 60)
    assert noise.min() >= 0
    assert noise.max() <= 1
    for distance, expected in AUTOCORRELATION[task].items():
        assert autocorrelation(noise, distance) == pytest.approx((expected, expected), abs=0.04), distance


@pytest.mark.parametrize("task", TASKS)
def test_background_has_no_border(task):
    """Blurring must neither darken nor calm the pixels along the edges."""
    noise = perturb.make_noise(1000, perturb.NOISE[task], np.random.default_rng(0))
    middle = noise[:, 20:28, 20:40]
    for edge in (noise[:, :2], noise[:, -2:], noise[:, :, :2], noise[:, :, -2:]):
        assert float(edge.mean()) == pytest.approx(float(middle.mean()), abs=0.01)
        assert float(edge.std()) == pytest.approx(float(middle.std()), abs=0.01)


def test_empty_pictures_are_background(made):
    if made.task == "det":
        assert (made.train.labels[..., 0] == 1).any((1, 2)).all(), "every detection picture has a digit"
        return
    empty = made.train.pictures[made.train.labels[:, 0] == 0].float() / 255
    for distance, expected in AUTOCORRELATION["loc"].items():
        assert autocorrelation(empty, distance) == pytest.approx((expected, expected), abs=0.04), distance


def test_mean_box(made):
    _, _, width, height = torch.cat(boxes_of(made.train)).mean(0).tolist()
    assert height == pytest.approx(BOX_HEIGHT, abs=1)
    if made.task == "loc":  # zeros and ones alone have another width
        assert width == pytest.approx(BOX_WIDTH, abs=1)


def test_share_of_empty_pictures_and_digits_per_picture(made):
    for split in (made.train, made.val, made.test):
        count = Counter(len(boxes) for boxes in boxes_of(split))
        if made.task == "loc":
            assert count == {0: round(len(split) / 11), 1: len(split) - round(len(split) / 11)}
        else:
            for number, share in {1: 0.77, 2: 0.195, 3: 0.03, 4: 0.005}.items():
                assert count[number] / len(split) == pytest.approx(share, abs=0.01), number
            assert set(count) == {1, 2, 3, 4}


def test_splits_are_what_was_asked_for(made):
    shape = (6,) if made.task == "loc" else (2, 3, 6)
    for split, count in zip((made.train, made.val, made.test), (2500, 200, 200), strict=True):
        assert len(split) == count
        assert split.pictures.dtype == torch.uint8
        assert split.pictures.shape == (count, 1, 48, 60)
        assert split.labels.dtype == torch.float32
        assert split.labels.shape == (count, *shape)
        labels.check_split(split.pictures, split.labels, made.task, "made")


def test_boxes_lie_inside_and_on_whole_pixels(made):
    for split in (made.train, made.val, made.test):
        x, y, w, h = torch.cat(boxes_of(split)).unbind(1)
        edges = torch.stack((x - w / 2, y - h / 2, 60 - (x + w / 2), 48 - (y + h / 2), w - 1, h - 1))
        assert edges.min() > -1e-4
        assert (edges - edges.round()).abs().max() < 1e-4


def test_boxes_lie_anywhere(made):
    """Left of the box and right of it is the same room, above and below too, and every tenth is used alike."""
    alone = torch.cat([boxes for boxes in boxes_of(made.train) if len(boxes) == 1])
    x, y, w, h = alone.unbind(1)
    for centre, size, extent in ((x, w, 60), (y, h, 48)):
        corner = (centre - size / 2).round() + torch.rand(len(x), generator=torch.Generator().manual_seed(0))
        share = torch.histc((corner / (extent - size + 1)).float(), bins=10, min=0, max=1) / len(x)
        assert share.sum() == pytest.approx(1, abs=1e-3)
        # The standard deviation of each of these is 0.007.
        assert (share - 0.1).abs().max() < 0.03


def test_no_boxes_overlap_and_no_centres_share_a_cell(made):
    pairs = 0
    for split in (made.train, made.val, made.test):
        for boxes in boxes_of(split):
            for first, second in combinations(boxes.tolist(), 2):
                apart = [abs(first[axis] - second[axis]) - (first[axis + 2] + second[axis + 2]) / 2 for axis in (0, 1)]
                assert max(apart) > -1e-4
                assert [first[0] // 20, first[1] // 24] != [second[0] // 20, second[1] // 24]
                pairs += 1
    assert (pairs > 0) == (made.task == "det")


def test_lists_hold_the_same_boxes_as_the_grid(made):
    for split in (made.train, made.val, made.test):
        if made.task == "loc":
            assert split.lists is None
        else:
            assert torch.equal(labels.lists_to_grid(split.lists).float(), split.labels)


def test_all_classes_are_there_in_like_numbers(made):
    present = made.train.labels[made.train.labels[..., 0] == 1]
    count = torch.bincount(present[:, 5].long(), minlength=labels.CLASSES[made.task])
    assert len(count) == labels.CLASSES[made.task]
    assert count.min() > 0.8 * count.float().mean()


# --- a digit and its box ----------------------------------------------------------------------------------------------


class Highest:
    """Random numbers that are always the highest there could be."""

    def uniform(self, low, high, count):
        return np.full(count, high)


def set_warp(monkeypatch, rotation=0.0, scale=1.0, aspect=0.0, gain=1.0):
    monkeypatch.setattr(perturb, "ROTATION", rotation)
    monkeypatch.setattr(perturb, "SCALE", (scale, scale))
    monkeypatch.setattr(perturb, "ASPECT", aspect)
    monkeypatch.setattr(perturb, "GAIN", gain)


def some_digits(count=40):
    return sources.load_digits().train[:count].float() / 255


def test_box_is_the_tight_box_of_pixels_above_a_fifth():
    canvas, box = perturb.warp_digits(some_digits(200), np.random.default_rng(0))
    assert canvas.min() >= 0
    assert canvas.max() <= 1
    for picture, found in zip(canvas.numpy(), box.tolist(), strict=True):
        rows, columns = np.nonzero(picture > 0.2)
        top, left = rows.min(), columns.min()
        assert found == [top, left, rows.max() - top + 1, columns.max() - left + 1]


def test_warp_without_change_only_centres_the_digit(monkeypatch):
    set_warp(monkeypatch)
    digits = some_digits()
    canvas, _ = perturb.warp_digits(digits, Highest())
    torch.testing.assert_close(canvas[:, 14:-14, 14:-14], digits)
    assert canvas.sum() == pytest.approx(float(digits.sum()), rel=1e-5)


def test_warp_brightens_and_clips(monkeypatch):
    set_warp(monkeypatch, gain=1.6)
    digits = some_digits()
    canvas, _ = perturb.warp_digits(digits, Highest())
    torch.testing.assert_close(canvas[:, 14:-14, 14:-14], (digits * 1.6).clamp(max=1))


def test_warp_turns(monkeypatch):
    set_warp(monkeypatch, rotation=90.0)
    digits = some_digits()
    canvas, _ = perturb.warp_digits(digits, Highest())
    turned = [torch.rot90(digits, quarter, (1, 2)) for quarter in (1, -1)]
    # Which way is all the same, both are drawn equally often.
    difference = min(float((canvas[:, 14:-14, 14:-14] - digit).abs().max()) for digit in turned)
    assert difference < 1e-4


def test_warp_scales_and_stretches(monkeypatch):
    block = torch.zeros(1, 28, 28)
    block[:, 6:22, 6:22] = 1
    set_warp(monkeypatch, scale=1.25)
    # A blurred edge above the fifth is a pixel more on either side.
    assert perturb.warp_digits(block, Highest())[1][0, 2:].tolist() == pytest.approx([20, 20], abs=2)
    set_warp(monkeypatch, aspect=math.log(1.25))
    height, width = perturb.warp_digits(block, Highest())[1][0, 2:].tolist()
    assert width == pytest.approx(16 * 1.25, abs=2)
    assert height == pytest.approx(16 / 1.25, abs=2)


def test_warp_stretches_before_it_turns(monkeypatch):
    """A turned digit is not sheared: a block turned by a quarter stays a block, its long side now upright."""
    block = torch.zeros(1, 28, 28)
    block[:, 6:22, 6:22] = 1
    set_warp(monkeypatch, rotation=90.0, aspect=math.log(1.25))
    height, width = perturb.warp_digits(block, Highest())[1][0, 2:].tolist()
    assert height == pytest.approx(16 * 1.25, abs=2)
    assert width == pytest.approx(16 / 1.25, abs=2)


def test_warp_refuses_digits_without_strokes_or_too_large(monkeypatch):
    with pytest.raises(ValueError, match="expected strokes in every digit"):
        perturb.warp_digits(torch.zeros(1, 28, 28), np.random.default_rng(0))
    set_warp(monkeypatch, scale=1.8)
    with pytest.raises(ValueError, match="expected digits that fit into 48 pixels"):
        perturb.warp_digits(torch.ones(1, 28, 28), Highest())


def without_background(noise):
    """The same random numbers are drawn, but every background is black."""
    return perturb.Noise(0.0, 0.0, noise.shares)


@pytest.mark.parametrize("task", TASKS)
def test_boxes_are_tight_around_the_digits_in_the_pictures(task, monkeypatch):
    monkeypatch.setitem(perturb.NOISE, task, without_background(perturb.NOISE[task]))
    digits = sources.load_digits()
    usable = digits.train_classes < labels.CLASSES[task]
    count = 120
    pictures, targets, lists, _ = perturb.make_pictures(
        digits.train[usable], digits.train_classes[usable], task, count, [0]
    )
    lists = boxes_of(data.Split(pictures, targets, lists if task == "det" else None))
    assert sum(map(len, lists)) >= 100
    for picture, boxes in zip(pictures[:, 0].int(), lists, strict=True):
        rest = picture.clone()
        for x, y, w, h in boxes.tolist():
            top, bottom, left, right = (round(edge) for edge in (y - h / 2, y + h / 2, x - w / 2, x + w / 2))
            inside = picture[top:bottom, left:right]
            # 0.2 is 51 of 255, and a pixel above it may be rounded to just that.
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.max() >= 51
            rest[top:bottom, left:right] = 0
        assert rest.max() <= 51


@pytest.mark.parametrize("task", TASKS)
def test_digits_are_laid_over_the_background_by_the_maximum(task):
    noise = perturb.NOISE[task]
    digits, per_picture = some_digits(30), np.array([0, 1, 2, 3, 4] * 3)
    pictures, boxes = perturb._make_chunk(digits, per_picture, noise, [5])
    black, same_boxes = perturb._make_chunk(digits, per_picture, without_background(noise), [5])
    assert torch.equal(boxes, same_boxes)
    background = perturb.make_noise(len(per_picture), noise, np.random.default_rng([5])).mul(255).round().byte()
    assert torch.equal(pictures, torch.maximum(background, black))
    assert torch.equal(pictures[::5], background[::5])


def test_a_chunk_of_empty_pictures_only():
    pictures, boxes = perturb._make_chunk(torch.empty(0, 28, 28), np.zeros(3, dtype=int), perturb.NOISE["loc"], [0])
    assert pictures.shape == (3, 48, 60)
    assert boxes.shape == (0, 4)


# --- sets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pictures", "pool"), [(26_874, 11_406), (2_967, 1_259), (4_981, 2_115)])
def test_full_detection_sets_use_each_digit_three_times(pictures, pool):
    counts = perturb._digits_per_picture("det", pictures, pool, np.random.default_rng(0))
    assert len(counts) == pictures
    assert counts.sum() == 3 * pool
    assert counts.mean() == pytest.approx(1.27, abs=0.01)
    for number, share in {1: 0.77, 2: 0.195, 3: 0.03, 4: 0.005}.items():
        assert (counts == number).mean() == pytest.approx(share, abs=0.005), number
    assert set(counts) == {1, 2, 3, 4}
    # Shuffled: the first half is like the second.
    assert counts[: pictures // 2].mean() == pytest.approx(counts[pictures // 2 :].mean(), abs=0.05)


@pytest.mark.parametrize(("pictures", "pool"), [(59_400, 54_000), (6_600, 6_000), (11_000, 10_000)])
def test_full_localization_sets_use_each_digit_once(pictures, pool):
    counts = perturb._digits_per_picture("loc", pictures, pool, np.random.default_rng(0))
    assert len(counts) == pictures
    assert counts.sum() == pool
    assert set(counts) == {0, 1}
    assert (counts[: pictures // 2] == 0).mean() == pytest.approx(1 / 11, abs=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_pools_of_mnist(task, monkeypatch):
    """With as many digits as MNIST has, the pools are those that the full sets use up evenly."""
    train_classes, test_classes = torch.full((60_000,), 5), torch.full((10_000,), 5)
    train_classes[: 5_923 + 6_742], test_classes[: 980 + 1_135] = 1, 0
    digits = sources.Digits(
        torch.zeros(1, 28, 28, dtype=torch.uint8).expand(60_000, -1, -1),
        train_classes,
        torch.zeros(1, 28, 28, dtype=torch.uint8).expand(10_000, -1, -1),
        test_classes,
    )
    asked = []

    def make_pictures(pictures, classes, task, count, seed):
        assert len(pictures) == len(classes)
        asked.append((count, len(pictures)))
        return torch.empty(0), torch.empty(0), [torch.empty(0, 6)], torch.arange(len(pictures))

    monkeypatch.setattr(perturb, "make_pictures", make_pictures)
    made = data._make(digits, task, data.FULL[task])
    expected = {"loc": (54_000, 6_000, 10_000), "det": (11_406, 1_259, 2_115)}[task]
    assert asked == list(zip(data.FULL[task], expected, strict=True))
    train, val, test = (set(made[name]["digits"].tolist()) for name in sources.SPLITS)
    assert len(train) + len(val) == sum(expected[:2])
    assert not train & val
    assert len(test) == expected[2]


def test_each_digit_is_used_equally_often_where_that_comes_out():
    digits = sources.load_digits()
    chosen = (digits.train_classes < 2).nonzero()[:127, 0]
    *_, used = perturb.make_pictures(digits.train[chosen], digits.train_classes[chosen], "det", 300, [0])
    assert torch.bincount(used, minlength=127).tolist() == [3] * 127  # 300 * 1.27 = 381 = 3 * 127


def test_no_digit_is_in_two_splits(made):
    """Training and validation digits are numbered in the source's training part, test digits in its test part."""
    train, val = set(made.train.digits.tolist()), set(made.val.digits.tolist())
    assert train
    assert val
    assert not train & val


def test_digits_say_which_digit_was_drawn(made):
    digits = sources.load_digits() if made.source == "digits" else sources.load_mnist(data.FOLDER)
    parts = ((made.train, digits.train_classes), (made.val, digits.train_classes), (made.test, digits.test_classes))
    for split, classes in parts:
        drawn = classes[split.digits].split([len(boxes) for boxes in boxes_of(split)])
        # The lists are in the order of their cells, the digits in the order they were drawn.
        lists = split.lists if split.lists is not None else [row[None][row[None, 0] == 1] for row in split.labels]
        assert [sorted(part.tolist()) for part in drawn] == [sorted(boxes[:, 5].tolist()) for boxes in lists]


def test_scikit_learns_digits_are_split_before_use():
    digits = sources.load_digits()
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.train) == len(digits.train_classes)
    assert len(digits.test) == len(digits.test_classes)
    everything = Counter(digits.train_classes.tolist()) + Counter(digits.test_classes.tolist())
    assert everything == {0: 178, 1: 182, 2: 177, 3: 183, 4: 181, 5: 182, 6: 181, 7: 179, 8: 174, 9: 180}
    assert digits.train.dtype == digits.test.dtype == torch.uint8
    assert digits.train.shape[1:] == digits.test.shape[1:] == (28, 28)
    framed = torch.cat((digits.train, digits.test))
    assert framed[:, 4:-4, 4:-4].amax((1, 2)).min() > 200
    framed[:, 4:-4, 4:-4] = 0
    assert framed.max() == 0


SMALL = (60, 20, 20)


def assert_same(first, second):
    for one, other in zip((first.train, first.val, first.test), (second.train, second.val, second.test), strict=True):
        assert torch.equal(one.pictures, other.pictures)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.digits, other.digits)
        assert (one.lists is None) == (other.lists is None)
        for boxes, others in zip(one.lists or [], other.lists or [], strict=True):
            assert torch.equal(boxes, others)


def load_small(task, folder, sizes=SMALL):
    return data.load(task, "digits", sizes=sizes, folder=folder, say=silence)


def only_file(folder):
    (path,) = (folder / "made").iterdir()
    return path


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_bytes(task, tmp_path):
    first, second = load_small(task, tmp_path / "first"), load_small(task, tmp_path / "second")
    assert_same(first, second)
    assert first.fingerprint == second.fingerprint
    one, other = only_file(tmp_path / "first"), only_file(tmp_path / "second")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_same_bytes_however_many_threads(task, tmp_path, monkeypatch):
    monkeypatch.setattr(perturb, "CHUNK", 7)  # so that there are several at a time
    made = []
    for number in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda number=number: number)
        made.append(load_small(task, tmp_path / str(number)))
    assert_same(*made)


def test_splits_are_different_pictures(tmp_path):
    splits = load_small("loc", tmp_path, sizes=(20, 20, 20))
    for first, second in combinations((splits.train, splits.val, splits.test), 2):
        same = (first.pictures[:, None] == second.pictures[None]).flatten(2).float().mean(2)
        assert same.max() < 0.5


def test_pictures_of_different_chunks_are_different(tmp_path, monkeypatch):
    monkeypatch.setattr(perturb, "CHUNK", 20)
    pictures = load_small("loc", tmp_path).train.pictures.split(20)
    for first, second in combinations(pictures, 2):
        assert (first == second).float().mean() < 0.5


def test_other_seed_other_pictures(tmp_path, monkeypatch):
    first = load_small("loc", tmp_path)
    monkeypatch.setattr(data, "SEED", data.SEED + 1)
    second = load_small("loc", tmp_path)
    assert (first.train.pictures == second.train.pictures).float().mean() < 0.5
    assert first.fingerprint != second.fingerprint
    assert len(list((tmp_path / "made").iterdir())) == 2


@pytest.mark.parametrize("task", TASKS)
def test_made_pictures_are_kept(task, tmp_path, monkeypatch):
    first = load_small(task, tmp_path)
    before = only_file(tmp_path).stat()

    def make_pictures(*arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(perturb, "make_pictures", make_pictures)
    assert_same(first, load_small(task, tmp_path))
    assert only_file(tmp_path).stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(AssertionError, match="made again"):
        load_small(task, tmp_path, sizes=(60, 20, 21))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_damaged_made_pictures_are_made_again(damage, tmp_path):
    first = load_small("det", tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    path.write_bytes({"truncated": whole[:middle], "flipped": flipped, "emptied": b""}[damage])
    assert_same(first, load_small("det", tmp_path))
    assert only_file(tmp_path).read_bytes() == whole


def test_another_size_or_task_is_another_file(tmp_path):
    for task, sizes in (("loc", SMALL), ("loc", (60, 20, 21)), ("loc", (20, 60, 20)), ("det", SMALL)):
        splits = load_small(task, tmp_path, sizes)
        assert [len(split) for split in (splits.train, splits.val, splits.test)] == list(sizes)
    assert len(list((tmp_path / "made").iterdir())) == 4


@pytest.mark.parametrize("task", TASKS)
def test_smallest_sets(task, tmp_path):
    splits = load_small(task, tmp_path, sizes=(1, 1, 1))
    for split in (splits.train, splits.val, splits.test):
        labels.check_split(split.pictures, split.labels, task, "made")


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1), (1, 1, -1), (1, 1, 1, 1)])
def test_sizes_that_make_no_sense(sizes, tmp_path):
    with pytest.raises(ValueError, match="sizes: expected three numbers of pictures above 0"):
        load_small("loc", tmp_path, sizes)


def test_fingerprint_is_of_all_that_training_sees(tmp_path):
    splits = load_small("loc", tmp_path)

    def changed(name, **fields):
        split = getattr(splits, name)
        parts = {"pictures": split.pictures.clone(), "labels": split.labels.clone()}
        for field in fields:
            parts[field].view(-1)[0] += 1
        others = {other: getattr(splits, other) for other in ("train", "val", "test")}
        return data.Splits(**others | {name: data.Split(**parts)}, task="loc", source="digits").fingerprint

    assert changed("train") == splits.fingerprint
    assert changed("test", pictures=True, labels=True) == splits.fingerprint
    different = [changed(name, **{field: True}) for name in ("train", "val") for field in ("pictures", "labels")]
    assert len({splits.fingerprint, *different}) == 5


def test_head(tmp_path):
    split = load_small("det", tmp_path).train
    head = split.head(7)
    assert len(head) == 7
    assert torch.equal(head.pictures, split.pictures[:7])
    assert torch.equal(head.labels, split.labels[:7])
    assert all(torch.equal(one, other) for one, other in zip(head.lists, split.lists[:7], strict=True))
    assert len(split.head(1000)) == len(split)


# --- the course's files -----------------------------------------------------------------------------------------------

COURSE_SIZES = (20, 10, 10)
COURSE_NAMES = {
    "loc": [f"localization_{split}.pt" for split in ("train", "val", "test")],
    "det": [f"{kind}_{split}.pt" for kind in ("detection", "list_y_true") for split in ("train", "val", "test")],
}
ALL_NINE = [(task, name) for task in TASKS for name in COURSE_NAMES[task]]


@pytest.fixture(scope="module")
def course_content(tmp_path_factory):
    """What stands in for the course's files: per task the splits, pictures as float32."""
    content = {}
    for task in TASKS:
        splits = load_small(task, tmp_path_factory.mktemp(task), COURSE_SIZES)
        content[task] = [
            data.Split(split.pictures.float() / 255, split.labels, split.lists)
            for split in (splits.train, splits.val, splits.test)
        ]
    return content


@pytest.fixture(scope="module", params=["dataset", "pairs"])
def course(request, course_content, tmp_path_factory):
    """A folder with all nine files, in each of the two forms that occur."""
    return write_course(tmp_path_factory.mktemp("course"), course_content, request.param)


def write_course(folder, content, form):
    for task, splits in content.items():
        for number, split in enumerate(splits):
            pictures, targets = split.pictures, split.labels
            pairs = [(picture.clone(), label.clone()) for picture, label in zip(pictures, targets, strict=True)]
            stored = TensorDataset(pictures, targets) if form == "dataset" else pairs
            torch.save(stored, folder / COURSE_NAMES[task][number])
            if task == "det":
                lists = [[box.clone() for box in boxes] for boxes in split.lists]
                torch.save(lists, folder / COURSE_NAMES[task][3 + number])
    return folder


@pytest.fixture
def course_copy(course_content, tmp_path):
    """One of a test's own, to damage."""
    return write_course(tmp_path, course_content, "dataset")


def load_course(task, folder):
    return data.load(task, "course", folder=folder, say=silence)


@pytest.mark.parametrize("source", ["course", None])
@pytest.mark.parametrize("task", TASKS)
def test_course_files_are_loaded(task, source, course, course_content):
    told = []
    splits = data.load(task, source, folder=course, say=told.append)
    assert splits.source == "course"
    assert len(told) == 1
    assert "course's files" in told[0]
    for split, expected in zip((splits.train, splits.val, splits.test), course_content[task], strict=True):
        assert torch.equal(split.pictures, expected.pictures)
        assert torch.equal(split.labels, expected.labels)
        if task == "det":
            assert all(isinstance(boxes, list) for boxes in split.lists)
            assert torch.equal(labels.lists_to_grid(split.lists).float(), split.labels)


@pytest.mark.parametrize("task", TASKS)
def test_some_of_the_course_files(task, course):
    """Where fewer are asked for, the first are taken, and all where more are."""
    splits = data.load(task, "course", sizes=(7, 100, 3), folder=course, say=silence)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [7, 10, 3]
    everything = load_course(task, course)
    assert torch.equal(splits.train.pictures, everything.train.pictures[:7])


def test_one_task_needs_no_files_of_the_other(course_copy):
    for name in COURSE_NAMES["det"]:
        (course_copy / name).unlink()
    assert data.load("loc", folder=course_copy, say=silence).source == "course"


def test_lists_with_entries_that_hold_no_digit(course_copy):
    """One of the ways in which an empty place could be written."""
    path = course_copy / "list_y_true_val.pt"
    lists = torch.load(path)
    torch.save([[torch.tensor(labels.NO_DIGIT), *boxes] for boxes in lists], path)
    load_course("det", course_copy)


@pytest.mark.parametrize(("task", "name"), ALL_NINE)
def test_a_missing_course_file_is_named(task, name, course_copy):
    (course_copy / name).unlink()
    with pytest.raises(DataError, match=rf"of the course's \d files for this task are there, but not {name}"):
        data.load(task, folder=course_copy, say=silence)
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        load_course(task, course_copy)


@pytest.mark.parametrize(("task", "name"), ALL_NINE)
def test_a_truncated_course_file_is_named(task, name, course_copy):
    path = course_copy / name
    whole = path.read_bytes()
    for length in (0, 1, 3, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            load_course(task, course_copy)


@pytest.mark.parametrize(("task", "name"), ALL_NINE)
def test_a_flipped_byte_is_found(task, name, course_copy):
    path = course_copy / name
    whole = path.read_bytes()
    content = files.load_tensors(path, [TensorDataset])
    tensor = content.tensors[0] if isinstance(content, TensorDataset) else next(boxes[0] for boxes in content if boxes)
    place = whole.index(tensor.numpy().tobytes())  # in the middle of the numbers, where nothing else would notice
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=f"{name}: damaged"):
        load_course(task, course_copy)


def test_any_flipped_byte_is_found_or_harmless(tmp_path):
    path = tmp_path / "small.pt"
    value = [torch.arange(6.0), torch.arange(3)]
    files.save_tensors(path, value)
    whole = path.read_bytes()
    messages = []
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read = files.load_tensors(path)
        except DataError as error:
            messages.append(str(error))
        else:  # in the padding, or in the time stamps
            assert all(torch.equal(one, other) for one, other in zip(read, value, strict=True))
    assert len(messages) > 50
    assert all(message.startswith(f"{path}: ") for message in messages)


GARBAGE = {
    "empty": b"",
    "text": b"hello world",
    "a web page": b"<!DOCTYPE html><html><body>Please log in</body></html>",
    "noise": np.random.default_rng(0).bytes(3000),
    "zeros": bytes(3000),
    "start of an archive": b"PK",
    "number pickled": pickle.dumps(5),
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize(("task", "name"), [("loc", "localization_val.pt"), ("det", "list_y_true_test.pt")])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_is_called_damaged(task, name, kind, course_copy):
    """And not dangerous, which is kept for files that ask for code."""
    (course_copy / name).write_bytes(GARBAGE[kind])
    with pytest.raises(DataError, match=f"{name}: damaged or truncated, or not a file that torch.save wrote"):
        load_course(task, course_copy)


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


WRITERS = {
    "torch.save": lambda value, path: torch.save(value, path),
    "torch.save in a list": lambda value, path: torch.save([(torch.zeros(1), value)], path),
    "torch.save, old form": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("task", "name"), [("loc", "localization_train.pt"), ("det", "list_y_true_val.pt")])
def test_a_file_that_would_run_code_is_refused(task, name, writer, course_copy):
    marker = course_copy / "it ran"
    WRITERS[writer](RunsCode(marker), course_copy / name)
    with pytest.raises(DataError, match=f"{name}: refused, it holds more than tensors"):
        load_course(task, course_copy)
    assert not marker.exists()


def test_the_file_that_would_run_code_does(tmp_path):
    """Else the test above would show nothing."""
    marker = tmp_path / "it ran"
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()


PICTURES, LABELS = torch.zeros(10, 1, 48, 60), torch.tensor(labels.NO_DIGIT).repeat(10, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TensorDataset(PICTURES), "expected a TensorDataset of pictures and labels, found 1 tensors"),
        (TensorDataset(PICTURES, LABELS, LABELS), "expected a TensorDataset of pictures and labels, found 3 tensors"),
        (PICTURES, "expected a TensorDataset or a list of pairs, found Tensor"),
        ({"pictures": PICTURES, "labels": LABELS}, "expected a TensorDataset or a list of pairs, found dict"),
        ([], "empty, expected at least one picture"),
        ([(PICTURES[0], LABELS[0]), PICTURES[0]], "entry 1 is not a pair"),
        ([(PICTURES[0], LABELS[0]), (PICTURES[0],)], "entry 1 is not a pair"),
        ([(PICTURES[0], LABELS[0]), (PICTURES[0], LABELS[0], LABELS[0])], "entry 1 is not a pair"),
        ([(PICTURES[0], LABELS[0]), (PICTURES[0], 3)], "entry 1 is not a pair"),
        ([(PICTURES[0], LABELS[0]), None], "entry 1 is not a pair"),
        ([(PICTURES[0], LABELS[0]), (PICTURES[0, 0], LABELS[0])], "all of one shape, found several"),
        ([(PICTURES[0], LABELS[0]), (PICTURES[0], LABELS[0, :5])], "all of one shape, found several"),
        ([PICTURES, LABELS], "entry 0 is not a pair"),
        (TensorDataset(PICTURES[:0], LABELS[:0]), "empty, expected at least one picture"),
        (TensorDataset(PICTURES + 2, LABELS), r"picture 0 has pixels outside \[0, 1\]"),
        (TensorDataset(PICTURES.double(), LABELS), "expected pictures in float32 or uint8"),
        (TensorDataset(PICTURES, LABELS.double()), "expected labels in float32"),
        (TensorDataset(PICTURES[:, 0], LABELS), "expected pictures of shape"),
        (TensorDataset(PICTURES, LABELS[:, :5]), "expected labels of shape"),
        (TensorDataset(PICTURES, LABELS * torch.nan), "pc is nan"),
    ],
)
def test_course_pictures_that_are_something_else(content, message, course_copy):
    name = "localization_val.pt"
    torch.save(content, course_copy / name)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load_course("loc", course_copy)


BOX = torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(10, 6), "expected a list of lists of boxes"),
        ({"a": 1}, "expected a list of lists of boxes"),
        ([1] * 10, "expected a list of lists of boxes"),
        ([[BOX]] * 9, "9 lists of boxes but 10 pictures"),
        ([[BOX]] * 11, "11 lists of boxes but 10 pictures"),
        ([[BOX, BOX]] + [[BOX]] * 9, "picture 0: two digits"),
        ([[BOX]] * 9 + [[BOX[:5]]], "picture 9: expected boxes of six numbers"),
        ([[BOX]] * 9 + [[5]], "picture 9: expected boxes of six numbers"),
        ([torch.tensor(1.0)] * 10, "expected"),
        ([[BOX]] * 9 + [[BOX * torch.nan]], "picture 9: pc is nan"),
        ([[BOX]] * 9 + [[BOX + torch.tensor((0, 1, 0, 0, 0, 0))]], "picture 9: .* no centre inside the picture"),
        ([[BOX]] * 9 + [[BOX + torch.tensor((0, 0, 0, 0, 0, 1))]], "label 9: class is 2"),
        ([[BOX]] * 9 + [[BOX + torch.tensor((0, 0, 0, 1, 0, 0))]], "label 9: box"),
    ],
)
def test_course_lists_that_are_something_else(content, message, course_copy):
    name = "list_y_true_val.pt"
    torch.save(content, course_copy / name)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load_course("det", course_copy)


def other_class(lists):
    lists[3][0][5] = 1 - lists[3][0][5]


def moved(lists):
    lists[3][0][1:3] = 0.4 * lists[3][0][1:3] + 0.3


def other_cell(lists):
    lists[3] = [torch.tensor((1, 1 - box[1], 1 - box[2], *box[3:])) for box in lists[3]]


def one_lost(lists):
    lists[3].pop()


def one_more(lists):
    taken = labels.lists_to_grid(lists[3:4])[0, ..., 0] == 1
    row, column = (~taken).nonzero()[0].tolist()
    lists[3].append(torch.tensor((1, (column + 0.5) / 3, (row + 0.5) / 2, 0.1, 0.1, 0)))


def shifted_by_one_picture(lists):
    lists.append(lists.pop(0))


@pytest.mark.parametrize("change", [other_class, moved, other_cell, one_lost, one_more, shifted_by_one_picture])
def test_lists_that_disagree_with_the_grid(change, course_copy):
    path = course_copy / "list_y_true_test.pt"
    lists = torch.load(path)
    change(lists)
    torch.save(lists, path)
    with pytest.raises(DataError, match=r"list_y_true_test.pt: not the same digits as in detection_test.pt"):
        load_course("det", course_copy)


def test_a_folder_may_have_any_name(course_copy):
    """Braces too, though messages and names are put together by format."""
    folder = course_copy.rename(course_copy.with_name("my {data}"))
    assert load_course("det", folder).source == "course"
    torch.save([[]] * 10, folder / "list_y_true_val.pt")
    with pytest.raises(DataError, match=r"list_y_true_val.pt: not the same digits as in detection_val.pt"):
        load_course("det", folder)


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["", "LOC", "detection", None])
def test_unknown_task(task, tmp_path):
    with pytest.raises(ValueError, match='task: expected "loc" or "det"'):
        data.load(task, "digits", folder=tmp_path, say=silence)


def test_unknown_source(tmp_path, monkeypatch):
    message = "expected one of course, mnist, digits, found 'imagenet'"
    with pytest.raises(ValueError, match=message):
        data.load("loc", "imagenet", folder=tmp_path, say=silence)
    monkeypatch.setenv("DATA_SOURCE", "imagenet")
    with pytest.raises(ValueError, match=f"DATA_SOURCE: {message}"):
        data.load("loc", folder=tmp_path, say=silence)


def few_mnist_digits(folder):
    """scikit-learn's digits under MNIST's name: which source is taken is the question, not its pictures."""
    return sources.load_digits()


def chosen(task, folder, source=None):
    told = []
    splits = data.load(task, source, sizes=(5, 5, 5), folder=folder, say=told.append)
    assert len(told) == 1
    words = {"course": "the course's files", "mnist": "MNIST's digits", "digits": "scikit-learn's digits"}
    assert [name for name, text in words.items() if text in told[0]] == [splits.source]
    return splits.source


def test_the_first_source_that_is_there_is_taken(course_copy, monkeypatch):
    monkeypatch.setattr(sources, "load_mnist", few_mnist_digits)
    monkeypatch.setattr(sources, "mnist_is_there", lambda folder: True)
    assert chosen("loc", course_copy) == "course"
    for name in COURSE_NAMES["loc"]:
        (course_copy / name).unlink()
    assert chosen("loc", course_copy) == "mnist"
    monkeypatch.setattr(sources, "mnist_is_there", lambda folder: False)
    assert chosen("loc", course_copy) == "digits"


def test_a_named_source_is_taken(course_copy, monkeypatch):
    monkeypatch.setattr(sources, "load_mnist", few_mnist_digits)
    monkeypatch.setattr(sources, "mnist_is_there", lambda folder: True)
    for name in sources.NAMES:
        assert chosen("det", course_copy, name) == name
        monkeypatch.setenv("DATA_SOURCE", name)
        assert chosen("det", course_copy) == name
    assert chosen("det", course_copy, "mnist") == "mnist", "the argument comes before DATA_SOURCE"
    monkeypatch.setenv("DATA_SOURCE", "")
    assert chosen("det", course_copy) == "course"


def test_named_digits_ask_for_nothing_else(tmp_path, monkeypatch):
    def ask(*arguments):
        raise AssertionError("asked for MNIST")

    monkeypatch.setattr(sources, "mnist_is_there", ask)
    assert chosen("loc", tmp_path, "digits") == "digits"


def test_mnist_named_but_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_reachable", lambda addresses: False)
    with pytest.raises(DataError, match=r"MNIST.raw: no MNIST files, and no download without internet"):
        data.load("loc", "mnist", folder=tmp_path, say=silence)


def raw_folder(folder):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    return raw


@pytest.mark.parametrize("there", [0, 3, 4])
def test_mnist_is_there_only_if_all_four_files_are(there, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_reachable", lambda addresses: False)
    raw = raw_folder(tmp_path)
    for name in RAW_MNIST[:there]:
        (raw / name).write_bytes(b"something")
    assert sources.mnist_is_there(tmp_path) == (there == 4)


def test_mnist_that_is_there_is_not_asked_for(tmp_path, monkeypatch):
    def ask(addresses):
        raise AssertionError("asked the network")

    monkeypatch.setattr(sources, "_reachable", ask)
    raw = raw_folder(tmp_path)
    for name in RAW_MNIST:
        (raw / name).write_bytes(b"something")
    assert sources.mnist_is_there(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("no mirror answered"), OSError("reset"), TimeoutError("too slow")])
def test_a_download_that_fails(error, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    limits = []

    def download(dataset):
        limits.append(socket.getdefaulttimeout())
        raise error

    monkeypatch.setattr(sources, "_reachable", lambda addresses: True)
    monkeypatch.setattr(MNIST, "download", download)
    before = socket.getdefaulttimeout()
    assert not sources.mnist_is_there(tmp_path)
    assert limits == [sources.NO_INTERNET_AFTER]
    assert socket.getdefaulttimeout() == before


def idx(values):
    """Bytes of MNIST's format: two zeros, 8 for unsigned bytes, the number of axes, their lengths, the numbers."""
    values = np.asarray(values, dtype=np.uint8)
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, idx(np.zeros((5, 28, 28)))[:-100], idx(np.zeros(5))])
def test_damaged_mnist_names_the_folder(content, tmp_path):
    raw = raw_folder(tmp_path)
    for name in RAW_MNIST:
        (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=r"MNIST.raw: (missing or damaged MNIST files|expected 60000 digits)"):
        data.load("loc", "mnist", sizes=(5, 5, 5), folder=tmp_path, say=silence)


def test_too_few_mnist_digits_name_the_folder(tmp_path):
    raw = raw_folder(tmp_path)
    for name in RAW_MNIST:
        (raw / name).write_bytes(idx(np.zeros((5, 28, 28)) if "images" in name else np.zeros(5)))
    with pytest.raises(DataError, match=r"MNIST.raw: expected 60000 digits of 28x28, found \(5, 28, 28\) and 5 labels"):
        data.load("loc", "mnist", sizes=(5, 5, 5), folder=tmp_path, say=silence)


@pytest.mark.skipif(not MNIST_IS_HERE, reason="MNIST's raw files are not in data/MNIST/raw")
@pytest.mark.parametrize("name", RAW_MNIST)
def test_one_truncated_mnist_file_names_the_folder(name, tmp_path):
    raw = raw_folder(tmp_path)
    for other in RAW_MNIST:
        (raw / other).symlink_to(data.FOLDER / "MNIST" / "raw" / other)
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    (raw / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"MNIST.raw: missing or damaged MNIST files"):
        data.load("loc", "mnist", sizes=(5, 5, 5), folder=tmp_path, say=silence)


def test_no_internet_is_noticed_soon():
    """An address that leads nowhere, and a name that there cannot be."""
    before = time.monotonic()
    assert not sources._reachable(["http://192.0.2.1/", "http://no-such-host.invalid/"])
    assert time.monotonic() - before < 6


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
def test_a_network_that_never_answers(hanging, monkeypatch):
    """Neither to the look-up of a name, which cannot be given a time limit, nor to a connection."""
    done = threading.Event()

    def hang(*arguments, **named):
        done.wait(30)
        raise OSError("too late")

    monkeypatch.setattr(sources, "NO_INTERNET_AFTER", 0.5)
    monkeypatch.setattr(socket, hanging, hang)
    before = time.monotonic()
    try:
        assert not sources._reachable(["http://first.invalid/", "https://second.invalid/"])
        assert 0.4 < time.monotonic() - before < 3
    finally:
        done.set()


def test_a_server_that_answers_is_reached():
    """Though another does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert sources._reachable(["http://no-such-host.invalid/", f"http://127.0.0.1:{port}/"])
    assert not sources._reachable([f"http://127.0.0.1:{port}/"])


# --- files ------------------------------------------------------------------------------------------------------------


def test_write_whole_replaces(tmp_path):
    path = tmp_path / "new folder" / "file"
    for content in (b"old", b"new and longer"):
        files.write_whole(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_writer_that_fails_leaves_the_old_file(error, old, tmp_path):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def write(file):
        file.write(b"half of it")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        files.write_whole(path, write)
    assert [(left, left.read_bytes()) for left in tmp_path.iterdir()] == ([] if old is None else [(path, old)])


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    files.write_whole(path, write)
    assert path.read_bytes() == b"new"


def test_tensors_there_and_back(tmp_path):
    value = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.tensor(1, dtype=torch.uint8), 2, "three", None, 4.5]}
    files.save_tensors(tmp_path / "file", value)
    read = files.load_tensors(tmp_path / "file")
    assert torch.equal(read["a"], value["a"])
    assert torch.equal(read["b"][0], value["b"][0])
    assert read["b"][1:] == value["b"][1:]


def test_pickles_there_and_back(tmp_path):
    value = {"loss": [0.5, 0.25, math.inf], "name": "FloNet", "epochs": 2, "best": None, "done": True, "size": (1, 2)}
    files.save_pickle(tmp_path / "file", value)
    assert files.load_pickle(tmp_path / "file") == value


@pytest.mark.parametrize(
    "value", [torch.zeros(2), np.float64(1), Path("x"), len, RuntimeError, Counter(), {"a": {1, Counter}}]
)
def test_pickles_of_more_than_plain_values_are_refused(value, tmp_path):
    files.save_pickle(tmp_path / "file", value)
    with pytest.raises(DataError, match="file: refused, it asks for"):
        files.load_pickle(tmp_path / "file")


@pytest.mark.parametrize("value", [Path("x"), np.float64(1), len, TensorDataset(torch.zeros(2)), RunsCode])
def test_files_of_more_than_tensors_are_refused(value, tmp_path):
    files.save_tensors(tmp_path / "file", value)
    with pytest.raises(DataError, match="file: refused, it holds more than tensors"):
        files.load_tensors(tmp_path / "file")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "it ran"
    files.save_pickle(tmp_path / "file", {"loss": [RunsCode(marker)]})
    with pytest.raises(DataError, match=r"file: refused, it asks for (posix|nt)\.system"):
        files.load_pickle(tmp_path / "file")
    assert not marker.exists()


@pytest.mark.parametrize("load", [files.load_pickle, files.load_tensors])
def test_missing_file_is_named(load, tmp_path):
    with pytest.raises(DataError, match=r"not there.pt: no such file"):
        load(tmp_path / "not there.pt")


def test_a_truncated_pickle_is_damaged(tmp_path):
    path = tmp_path / "file"
    files.save_pickle(path, {"loss": [0.5, 0.25], "name": "FloNet"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="file: damaged or truncated, or not a pickle"):
            files.load_pickle(path)


@pytest.mark.parametrize("kind", [kind for kind in GARBAGE if kind != "number pickled"])
def test_garbage_is_no_pickle(kind, tmp_path):
    (tmp_path / "file").write_bytes(GARBAGE[kind])
    with pytest.raises(DataError, match=r"file: (damaged|refused)"):
        files.load_pickle(tmp_path / "file")
