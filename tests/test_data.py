"""Images and labels: made ones, the course's files, the sources of digits; what they must be and what is refused."""

import os
import pickle
import re
import socket
import threading
import time
from dataclasses import replace
from http.client import IncompleteRead
from itertools import combinations, product
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Subset, TensorDataset
from torchvision.transforms.functional import affine

import data
from data import DataError, Split, Splits, labels, perturb, sources
from data.files import SaveError
from utils import as_floats

TASKS = pytest.mark.parametrize("task", ["loc", "det"])
COURSE = {task: [path.name for path in sources.course_files(data.FOLDER, task)] for task in ("loc", "det")}
three = attrgetter("train", "val", "test")
why_unreachable = sources._why_unreachable


@pytest.fixture(autouse=True)
def without_internet(monkeypatch):
    monkeypatch.delenv("DATA_SOURCE", raising=False)
    monkeypatch.setattr(sources, "_why_unreachable", lambda addresses: "no internet")


def load(task, folder, source="digits", sizes=(60, 20, 20)):
    return data.load(task, source, sizes, folder, log=lambda text: None)


def edges_of(split):
    """Per image (k, 4), the first and last column and row of its boxes: left, top, right and bottom."""
    lists = split.lists or [row[None][row[None, 0] == 1] for row in split.labels]
    boxes = [digits[:, 1:5].double() * torch.tensor((60, 48, 60, 48)) for digits in lists]
    return [torch.cat((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1) for box in boxes]


# --- made data
def test_pieces_of_ink_are_counted_digit_by_digit():
    digits = torch.zeros(4, 28, 28, dtype=torch.uint8)
    digits[0, 5:20, 10] = 200
    digits[0, 12, 13] = 1  # a speck, however faint
    digits[0, 0, 20] = 255  # outside of what counts
    digits[2, 25, 5:9] = digits[2, 24, 9] = 90  # on the last row that counts, and diagonally on
    digits[3, 2, 5:9] = 90  # on the first row, over the last digit's
    assert perturb.count_pieces(digits).tolist() == [2, 0, 1, 1]
    assert perturb.count_pieces(digits[:0]).tolist() == []


@pytest.fixture(scope="module", params=["loc", "det"])
def made(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("made"), sizes=(1000, 150, 150))


def test_made_sets_are_valid_and_share_no_digit(made):
    pool = sources.load_digits()
    for split, classes in zip(three(made), (pool.train_classes, pool.train_classes, pool.test_classes), strict=True):
        labels.check_split(split.images, split.labels, made.task, "made")
        assert split.images.dtype == torch.uint8
        assert made.task == "loc" or labels.same_digits(labels.lists_to_grid(split.lists), split.labels)
        present = split.labels[..., 0] == 1
        assert torch.equal(split.digits >= 0, present)
        assert torch.equal(classes[split.digits[present]], split.labels[present][:, 5].long())
        assert len(classes[split.digits[present]].unique()) == labels.CLASSES[made.task]
        assert torch.equal(split.pieces > 0, present)
    train, val = (set(split.digits[split.digits >= 0].tolist()) for split in (made.train, made.val))
    assert not train & val
    everything = torch.cat((pool.train, pool.test))
    assert len(everything.unique(dim=0)) == len(everything) == 1797


def test_made_boxes_are_on_whole_pixels_and_8_apart_and_one_in_a_cell_however_borders_are_read(made):
    for boxes in edges_of(made.train):
        torch.testing.assert_close(boxes, boxes.round(), rtol=0, atol=1e-4)
        for one, two in combinations(boxes.round().tolist(), 2):
            assert max(one[0] - two[2], two[0] - one[2], one[1] - two[3], two[1] - one[3]) >= 8
            for dx, dy in product((0, 1), repeat=2):
                assert len({((box[0] + box[2] - dx) // 40, (box[1] + box[3] - dy) // 48) for box in (one, two)}) == 2


@TASKS
def test_made_boxes_are_tight_around_the_ink(task, tmp_path, monkeypatch):
    """And there is no ink outside. On a black background, where all that is not black is a digit."""
    monkeypatch.setattr(perturb, "make_noise", lambda count, *more: torch.zeros(count, 48, 60, dtype=torch.uint8))
    split = load(task, tmp_path, sizes=(200, 1, 1)).train
    for image, boxes in zip(split.images[:, 0] > 0, edges_of(split), strict=True):
        for left, top, right, bottom in boxes.round().int().tolist():
            inside = image[top : bottom + 1, left : right + 1]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            inside[:] = False
        assert not image.any()


def test_digits_are_mapped_as_torchvision_maps_them():
    digits = sources.load_digits().train[:40]
    angle, scale = torch.linspace(-30, 30, 40), torch.linspace(0.7, 1.2, 40).roll(17)
    shift = torch.stack((torch.arange(40) - 20, (torch.arange(40) * 7) % 33 - 16), 1)
    found = perturb.affine(digits, angle.deg2rad(), scale, shift.float())
    middle = F.pad(digits[:, 2:-2, 2:-2], (18, 18, 12, 12))
    for number, numbers in enumerate(zip(angle.tolist(), shift.tolist(), scale.tolist(), strict=True)):
        assert torch.equal(found[number], affine(middle[number, None], *numbers, shear=[0.0])[0])


# Columns and rows with ink; a line one pixel wide, one cut by the image's edges, a full image, none.
INK = [((7, 8), (5, 15), (7, 9.5, 0, 9)), ((50, 70), (40, 50), (54.5, 43.5, 9, 7))]
INK += [((0, 60), (0, 48), (29.5, 23.5, 59, 47)), ((0, 0), (0, 0), (0, 0, 0, 0))]


@pytest.mark.parametrize(("columns", "rows", "box"), INK)
def test_a_box_reaches_from_the_first_to_the_last_pixel_with_ink(columns, rows, box):
    ink = torch.zeros(1, 48, 60, dtype=torch.bool)
    ink[:, slice(*rows), slice(*columns)] = True
    assert (perturb.find_boxes(ink)[0] * torch.tensor((60, 48, 60, 48))).tolist() == pytest.approx(box)


JOINS = [  # left, top, right, bottom of digits, and their images
    ([(2, 6, 10, 14), (18, 6, 26, 14)], [0, 0]),
    ([(2, 6, 10, 14), (17, 6, 26, 14)], [0, 1]),
    ([(6, 2, 14, 10), (6, 18, 14, 36)], [0, 0]),  # apart in y
    ([(0, 0, 4, 8), (13, 0, 17, 8)], [0, 1]),  # centres in one cell
    ([(18, 0, 22, 8), (30, 0, 34, 8)], [0, 1]),  # or one on a border, which belongs to the right
    ([(18, 0, 22, 8), (6, 0, 10, 8)], [0, 1]),  # or to the left
    ([(2, 6, 10, 14), (2, 6, 10, 14), (30, 6, 34, 14), (50, 6, 54, 14)], [0, 1, 1, 1]),  # never to one before
]


@pytest.mark.parametrize(("edges", "owner"), JOINS)
def test_a_digit_joins_the_present_image_where_it_is_apart_and_in_a_cell_of_its_own(edges, owner):
    left, top, right, bottom = np.array(edges).T
    boxes = np.stack(((left + right) / 120, (top + bottom) / 96, (right - left) / 60, (bottom - top) / 48), 1)
    assert perturb.fill_images(boxes).tolist() == owner


@TASKS
def test_one_seed_gives_the_same_bytes_kept_until_they_are_damaged(task, tmp_path, monkeypatch):
    monkeypatch.setattr(perturb, "CHUNK", 7)  # several at a time, by however many threads
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    splits = load(task, tmp_path)
    (path,) = (tmp_path / "made").iterdir()
    whole, written, middle = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_size // 2
    assert load(task, tmp_path).fingerprint == splits.fingerprint
    assert path.stat().st_mtime_ns == written
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for damaged in (b"", whole[:middle], whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]):
        path.write_bytes(damaged)
        assert load(task, tmp_path).fingerprint == splits.fingerprint
        assert path.read_bytes() == whole
    assert [len(split) for split in three(load(task, tmp_path, sizes=(1, 2, 3)))] == [1, 2, 3]
    monkeypatch.setattr(data, "SEED", data.SEED + 1)
    images = torch.cat([split.images for split in (*three(splits), *three(load(task, tmp_path)))]).flatten(1)
    assert torch.corrcoef(images.float()).fill_diagonal_(0).max() < 0.8, "no two images are alike"


def test_images_that_cannot_be_kept_are_used_and_that_is_said_once(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise SaveError("read-only")

    monkeypatch.setattr(data, "save_tensors", refuse)
    told = []
    assert len(data.load("loc", "digits", (6, 2, 2), tmp_path, told.append).train) == 6
    assert [text for text in told if "not kept" in text] == ["data: the images are used but not kept: read-only"]


# --- Split and Splits
@TASKS
def test_an_index_chooses_images_with_all_that_belongs_to_them(task, tmp_path):
    split = load(task, tmp_path).train
    chosen = torch.zeros(60, dtype=torch.bool)
    chosen[[3, 59]] = True
    cases = [(3, [3]), (-1, [59]), (slice(2, 5), [2, 3, 4]), (slice(-2, None), [58, 59]), (slice(99), [*range(60)])]
    cases += [([4, 1, 1], [4, 1, 1]), (torch.tensor([4, 1]), [4, 1]), (chosen, [3, 59]), ([], []), (slice(0), [])]
    for index, numbers in cases:
        part = split[index]
        assert (part.task, len(part)) == (task, len(numbers))
        for name in ("images", "labels", "digits"):
            assert torch.equal(getattr(part, name), getattr(split, name)[numbers])
        assert part.lists is None if task == "loc" else str(part.lists) == str([split.lists[i] for i in numbers])
    with pytest.raises(IndexError):
        split[60]
    bare = Split(split.images, split.labels)[chosen].to(torch.device("meta"))
    assert (bare.images.device.type, bare.labels.device.type, len(bare)) == ("meta", "meta", 2)


def test_the_fingerprint_is_of_all_that_training_sees(tmp_path):
    splits = load("loc", tmp_path)
    found = [Splits(*three(splits), "course").fingerprint]
    for split, field in product(three(splits), ("images", "labels")):
        getattr(split, field).view(-1)[0] += 1
        found.append(Splits(*three(splits), "course").fingerprint)
    assert len(set(found[:5])) == 5
    assert found[4] == found[5] == found[6]


def test_made_images_are_the_same_where_a_processor_rounds_a_pixel_otherwise(tmp_path, monkeypatch):
    splits = load("loc", tmp_path)
    found = splits.fingerprint
    splits.train.images[0, 0, 5, 5] ^= 1
    assert Splits(*three(splits), "digits").fingerprint == found
    splits.train.labels[0, 1] += 1 / 120
    other = [found, Splits(*three(splits), "digits").fingerprint]
    noise = perturb.NOISE["loc"]
    for changed in (replace(noise, mean=noise.mean + 0.001), replace(noise, std=noise.std + 0.001)):
        monkeypatch.setitem(perturb.NOISE, "loc", changed)
        other.append(load("loc", tmp_path / str(len(other))).fingerprint)
    assert len(set(other)) == 4


# --- the course's files
@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What stands in for the course's files: per task the splits, with float32 images."""
    made = {task: three(load(task, tmp_path_factory.mktemp(task), sizes=(20, 10, 10))) for task in COURSE}
    return {task: [Split(s.images / 255, s.labels, s.lists) for s in splits] for task, splits in made.items()}


@pytest.fixture
def course(content, tmp_path):
    """A folder with all nine files."""
    for task, splits in content.items():
        for number, split in enumerate(splits):
            torch.save(TensorDataset(split.images, split.labels), tmp_path / COURSE[task][number])
            if task == "det":
                torch.save([[*boxes.clone()] for boxes in split.lists], tmp_path / COURSE[task][3 + number])
    return tmp_path


@TASKS
def test_course_files_are_loaded(task, course, content):
    """All of them, and the first where fewer are asked for, without the other task's."""
    for name in COURSE["det" if task == "loc" else "loc"]:
        (course / name).unlink()
    for sizes in (None, (7, 100, 3)):
        splits = load(task, course, None, sizes)
        assert (splits.task, splits.source) == (task, "course")
        for split, expected, size in zip(three(splits), content[task], sizes or (20, 10, 10), strict=True):
            assert torch.equal(split.images, expected.images[:size])
            assert torch.equal(split.labels, expected.labels[:size])
            assert task == "loc" or labels.same_digits(labels.lists_to_grid(split.lists), split.labels)


ODD = {
    "float64 labels": (lambda x, y: TensorDataset(x, y.double()), "labels in torch.float64 converted"),
    "float64": (lambda x, y: TensorDataset(x.double(), y), "images in torch.float64 converted"),
    "float16": (lambda x, y: TensorDataset(x.half(), y), "images in torch.float16 converted"),
    "uint8": (lambda x, y: TensorDataset((x * 255).round().byte(), y), ""),
    "uint16": (lambda x, y: TensorDataset((x * 255).round().to(torch.uint16), y), "images in torch.uint16 converted"),
    "no channel": (lambda x, y: TensorDataset(x[:, 0], y), "images without a channel got one"),
    "pairs": (lambda x, y: [*zip(x, y, strict=True)], ""),
    "pairs of arrays": (lambda x, y: [*zip(x.numpy(), y.numpy(), strict=True)], ""),
    "pairs of lists": (lambda x, y: [*zip(x.tolist(), y.tolist(), strict=True)], ""),
    "Subset": (lambda x, y: Subset(TensorDataset(x.flip(0), y.flip(0)), [*range(9, -1, -1)]), ""),
    "NaN": (lambda x, y: TensorDataset(x, torch.where(y > -1, y, torch.nan)), "NaN in labels without a digit replaced"),
    "1.4": (
        lambda x, y: TensorDataset(x.put(x.argmax(), torch.tensor(1.4)), y),
        r"pixels outside \[0, 1\] in 1 image, clipped",
    ),
    "several": (lambda x, y: TensorDataset(x[:, 0], y.double()), ".+; .+"),
}


@TASKS
@pytest.mark.parametrize("kind", ODD)
def test_odd_course_files_are_mended_and_that_is_said_in_one_line(task, kind, course, content):
    change, note = ODD[kind]
    expected, told = content[task][1], []
    torch.save(change(expected.images, expected.labels), course / COURSE[task][1])
    found = data.load(task, "course", None, course, told.append).val
    assert re.fullmatch(f"{COURSE[task][1]}: {note}" if note else "", "\n".join(told[1:]))
    torch.testing.assert_close(as_floats(found.images), expected.images, rtol=0, atol=1e-3)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("form", [tuple, torch.Tensor.clone, torch.Tensor.tolist, lambda boxes: [*boxes.numpy()]])
def test_lists_of_boxes_may_be_of_anything(form, course, content):
    torch.save(tuple(map(form, content["det"][1].lists)), course / "list_y_true_val.pt")
    told = []
    data.load("det", "course", None, course, told.append)
    assert len(told) == 1


PIXELS = [((5, 24, 12, 10), True), ((30, 43, 12, 12), True), ((30, 24, 0, 10), True), ((4, 24, 12, 10), False)]


@TASKS
@pytest.mark.parametrize(("box", "good"), PIXELS)
def test_a_box_may_be_a_pixel_outside_or_without_a_width_but_not_two_outside(task, box, good, course):
    rows = torch.tensor([[1, *(np.array(box) / (60, 48, 60, 48)), 1]] * 10, dtype=torch.float32)
    grid = rows if task == "loc" else labels.lists_to_grid(rows[:, None]).float()
    torch.save(TensorDataset(X, grid), course / COURSE[task][1])
    torch.save([*rows[:, None]], course / "list_y_true_val.pt")
    if good:
        assert torch.equal(load(task, course, None).val.labels, grid)
    else:
        with pytest.raises(DataError, match=f"{COURSE[task][1]}: label 0: box .* is more than a pixel outside"):
            load(task, course, None)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ENDS_THE_PROCESS = type("Attack", (), {"__reduce__": lambda self: (os._exit, (13,))})()


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in COURSE.items() for name in names])
def test_a_course_file_that_cannot_be_used_is_named(task, name, course):
    path, whole = course / name, (course / name).read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], flipped):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{name}: damaged"):
            load(task, course, "course")
    for content, what in ((b"<!DOCTYPE html><html>", "a web page"), (POINTER, "a Git LFS pointer")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: {what}, not the file itself"):
            load(task, course, "course")
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        write([(0, ENDS_THE_PROCESS)], path)
        with pytest.raises(DataError, match=rf"{name}: refused, it asks for {os.name}\._exit, more than tensors"):
            load(task, course, "course")
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        load(task, course, "course")
    with pytest.raises(DataError, match=rf"of the course's \d files for this task are there, but not {name}"):
        load(task, course, None)


@TASKS
def test_a_subset_of_images_that_are_not_there_is_named(task, course, content):
    expected, name = content[task][1], COURSE[task][1]
    torch.save(Subset(TensorDataset(expected.images, expected.labels), [0, 10]), course / name)
    with pytest.raises(DataError, match=f"{name}: expected images, and labels.*out of bounds"):
        load(task, course, "course")


X, Y = torch.zeros(10, 1, 48, 60), torch.tensor(labels.NO_DIGIT).repeat(10, 1)
BOX = torch.tensor((1, 0.5, 0.2, 0.2, 0.2, 1))
SOMETHING_ELSE = [
    ("localization_val.pt", TensorDataset(X), "expected a TensorDataset of images and labels, found 1 tensors"),
    ("localization_val.pt", {"images": X, "labels": Y}, "expected a TensorDataset or a list of pairs, found dict"),
    ("localization_val.pt", [], "empty, expected at least one image"),
    ("localization_val.pt", [(X[0], Y[0]), 3], "entry 1 is not a pair"),
    ("localization_val.pt", [(X[0], Y[0]), (X[0], Y[0, :5])], "expected images, and labels, all of one shape"),
    ("localization_val.pt", TensorDataset(X + 128, Y), r"expected pixels in \[0, 1\], but 100% of them are outside"),
    ("localization_val.pt", TensorDataset(X + 0j, Y), "expected pixels that are real numbers, found torch.complex64"),
    ("localization_val.pt", TensorDataset(X, Y[:, None, None].repeat(1, 2, 3, 1)), "belong to the other task"),
    ("detection_val.pt", TensorDataset(X, Y), "belong to the other task"),
    ("localization_val.pt", TensorDataset(X, Y * torch.nan), "pc is nan"),
    ("list_y_true_val.pt", torch.zeros(10, 6), "expected a list of lists of boxes"),
    ("list_y_true_val.pt", [[BOX]] * 9, "9 lists of boxes but 10 images"),
    ("list_y_true_val.pt", [[BOX, BOX]] + [[BOX]] * 9, "image 0: two digits"),
    ("list_y_true_val.pt", [[BOX]] * 9 + [[BOX * torch.tensor((1, 1, 1, 1, 1, 2))]], "label 9: class is 2"),
]


@pytest.mark.parametrize(("name", "stored", "message"), SOMETHING_ELSE)
def test_a_course_file_that_holds_something_else(name, stored, message, course):
    torch.save(stored, course / name)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load("loc" if name in COURSE["loc"] else "det", course, "course")


def test_lists_must_hold_the_digits_of_the_grid(course, content):
    lists = [[*boxes] for boxes in content["det"][1].lists]
    # An entry without a digit is one of the ways in which an empty place could be written.
    torch.save([[torch.tensor(labels.NO_DIGIT), *boxes] for boxes in lists], course / "list_y_true_val.pt")
    assert load("det", course, None).source == "course"
    smaller = [[box * torch.tensor((1, 1, 1, 0.9, 1, 1)) for box in boxes] for boxes in lists]
    other_class = [[torch.cat((box[:5], 1 - box[5:])) for box in boxes] for boxes in lists]
    for other in (smaller, other_class, lists[1:] + lists[:1], [lists[0][1:], *lists[1:]]):
        torch.save(other, course / "list_y_true_val.pt")
        with pytest.raises(DataError, match=r"list_y_true_val.pt: not the same digits as in detection_val.pt"):
            load("det", course, None)


# --- sources
def test_what_makes_no_sense_is_named(tmp_path):
    for named in ({"source": "imagenet"}, {"sizes": (0, 1, 1)}, {"sizes": (1, 1)}):
        with pytest.raises(ValueError, match=r"(DATA_SOURCE: expected one of|sizes: expected three) .*, found "):
            load("loc", tmp_path, **named)


def test_the_named_source_is_taken_or_the_first_that_is_there(course, monkeypatch):
    words = {"course": "the course's files", "mnist": "MNIST's digits", "digits": "scikit-learn's digits"}

    def taken(source=None):
        told = []
        splits = data.load("det", source, (5, 5, 5), course, told.append)
        assert [name for name, text in words.items() if text in "".join(told)] == [splits.source]
        return splits.source

    with pytest.raises(DataError, match=r"MNIST.raw: no MNIST files, or damaged ones, and no download"):
        taken("mnist")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "load_mnist", lambda folder: replace(sources.load_digits(), source="mnist"))
        patch.setattr(sources, "mnist_is_there", lambda folder, log: True)
        for name in sources.NAMES:
            patch.setenv("DATA_SOURCE", name)
            assert (taken(), taken("digits"), taken("course")) == (name, "digits", "course")
        patch.setenv("DATA_SOURCE", "")
        assert taken() == "course"
        monkeypatch.setenv("DATA_DIR", str(course))  # of the course's files, where no folder is given
        assert load("det", None, None).source == "course"
        for name in COURSE["det"]:
            (course / name).unlink()
        assert taken() == "mnist"
        patch.setenv("DATA_DIR", str(course / "mistyped"))
        with pytest.raises(DataError, match="DATA_DIR: expected a folder with the course's files, found none"):
            load("det", None, None)
    assert taken() == "digits"


def test_mnist_is_read_from_its_raw_files_or_refused_with_their_folder(tmp_path):
    pool, stored = sources.load_digits(), []
    for path, count in zip(sources.mnist_files(tmp_path), (60_000, 60_000, 10_000, 10_000), strict=True):
        values = pool.train if "images" in path.name else pool.train_classes
        stored.append(values[torch.arange(count) % len(values)])
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two zeros, 8 for unsigned bytes, the number of axes, their lengths, the numbers.
        head = bytes((0, 0, 8, values.ndim)) + np.array(stored[-1].shape, dtype=">i4").tobytes()
        path.write_bytes(head + stored[-1].byte().numpy().tobytes())
    assert sources.mnist_is_there(tmp_path)
    read = attrgetter("train", "train_classes", "test", "test_classes")(sources.load_mnist(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(read, stored, strict=True))
    for path in sources.mnist_files(tmp_path):
        whole = path.read_bytes()
        fewer = whole[:6] + b"\0\5" + whole[8 : 16 + 5 * 784 if "images" in path.name else 8 + 5]
        for damaged in (b"", b"garbage" * 50, whole[: len(whole) // 2], fewer):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"MNIST.raw.{path.name}: damaged"):
                sources.load_mnist(tmp_path)
            with pytest.raises(DataError, match=r"MNIST.raw: no MNIST files, or damaged ones, and no download"):
                load("loc", tmp_path, "mnist")
        path.unlink()
        assert not sources.mnist_is_there(tmp_path)
        path.write_bytes(whole)


def test_a_download_that_fails(tmp_path, monkeypatch):
    errors = [TimeoutError("too slow"), IncompleteRead(b"half")] * 2

    def fail(address, timeout):
        assert timeout == sources.NO_INTERNET_AFTER
        raise errors.pop()

    monkeypatch.setattr(sources, "_why_unreachable", lambda addresses: "")
    monkeypatch.setattr(sources, "urlopen", fail)
    assert [sources.mnist_is_there(tmp_path) for _ in range(2)] == [False, False]
    assert errors == []


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
def test_a_network_that_never_answers_is_not_waited_for(hanging, monkeypatch):
    """Neither for the look-up of a name, which cannot be given a time limit, nor for a connection."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
    assert "refused" in why_unreachable([address])  # nobody listens any more
    done = threading.Event()

    def hang(*arguments):
        done.wait(30)
        raise OSError("too late")

    monkeypatch.setattr(sources, "NO_INTERNET_AFTER", 0.5)
    monkeypatch.setattr(socket, hanging, hang)
    before = time.monotonic()
    assert why_unreachable(["http://first.invalid/", "https://second.invalid/"]) == "no answer in 0.5 seconds"
    assert 0.4 < time.monotonic() - before < 3
    done.set()
