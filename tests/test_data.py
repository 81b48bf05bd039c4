"""Images: generated ones, the course's files, the sources of digits; what they must be and what is refused.

Full sets generated from MNIST are as the course's are known to be, also to networks that have only ever seen those.
"""

import functools
import gzip
import hashlib
import http.server
import os
import socket
import threading
import time
from dataclasses import replace
from itertools import combinations, product
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms.functional import affine

import data
import models
import utils
from data import DataError, Split, Splits, checks, labels, perturb, sources
from training import analysis

TASKS = pytest.mark.parametrize("task", ["loc", "det"])
COURSE = {task: [path.name for path in sources.course_files(data.FOLDER, task)] for task in ("loc", "det")}
PIXELS = torch.tensor((60, 48, 60, 48))
NOWHERE = ["http://127.0.0.1:9/"]
three = attrgetter("train", "val", "test")


@pytest.fixture(autouse=True)
def without_internet(monkeypatch):
    for name in ("DATA_SOURCE", "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(MNIST, "mirrors", NOWHERE)


def load(task, folder, source="digits", sizes=(60, 20, 20), log=lambda text: None):
    return data.load(task, source, sizes, folder, log)


def edges_of(split):
    """Per image (k, 4), the first and last column and row of its boxes: left, top, right and bottom."""
    lists = split.lists or [row[None][row[None, 0] == 1] for row in split.labels]
    boxes = [digits[:, 1:5].double() * PIXELS for digits in lists]
    return [torch.cat((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1) for box in boxes]


# --- generated images
@TASKS
def test_generated_sets_are_valid_and_share_no_digit_and_boxes_are_apart(task, tmp_path):
    """By 8 pixels at least, on whole pixels, and one in a cell however borders are read."""
    pool, splits = sources.load_digits(), load(task, tmp_path, sizes=(1000, 150, 150))
    for split, classes in zip(three(splits), (pool.train_classes, pool.train_classes, pool.test_classes)):
        labels.check_split(split.images, split.labels, task, "generated")
        digit = split.labels[..., 0] == 1
        assert torch.equal(split.digits >= 0, digit)
        assert torch.equal(split.pieces > 0, digit)
        assert torch.equal(classes[split.digits[digit]], split.labels[digit][:, 5].long())
        assert len(classes[split.digits[digit]].unique()) == labels.CLASSES[task]
        assert task == "loc" or labels.same_digits(labels.lists_to_grid(split.lists), split.labels)
    train, val = (set(split.digits[split.digits >= 0].tolist()) for split in (splits.train, splits.val))
    assert not train & val
    assert len(torch.cat((pool.train, pool.test)).unique(dim=0)) == 1797
    for boxes in edges_of(splits.train):
        torch.testing.assert_close(boxes, boxes.round(), rtol=0, atol=1e-4)
        for one, two in combinations(boxes.round().tolist(), 2):
            assert max(one[0] - two[2], two[0] - one[2], one[1] - two[3], two[1] - one[3]) >= 8
            for dx, dy in product((0, 1), repeat=2):
                assert len({((box[0] + box[2] - dx) // 40, (box[1] + box[3] - dy) // 48) for box in (one, two)}) == 2


@TASKS
def test_generated_boxes_are_tight_around_the_ink(task, tmp_path, monkeypatch):
    """And there is no ink outside. On a black background, where all that is not black is a digit."""
    monkeypatch.setattr(perturb, "make_noise", lambda count, *more: torch.zeros(count, 48, 60, dtype=torch.uint8))
    split = load(task, tmp_path, sizes=(200, 1, 1)).train
    assert torch.equal(split.visible, split.labels)
    for image, boxes in zip(split.images[:, 0] > 0, edges_of(split)):
        for left, top, right, bottom in boxes.round().int().tolist():
            inside = image[top : bottom + 1, left : right + 1]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            inside[:] = False
        assert not image.any()


def test_a_box_may_be_a_line_the_whole_image_or_nothing():
    for columns, rows, box in ((7, slice(5, 15), (7, 9.5, 0, 9)), (slice(60), slice(48), (29.5, 23.5, 59, 47))):
        ink = torch.zeros(2, 48, 60, dtype=torch.bool)
        ink[1, rows, columns] = True
        assert (perturb.find_boxes(ink) * PIXELS).tolist() == [[0, 0, 0, 0], pytest.approx(box)]


def test_digits_are_mapped_as_torchvision_maps_them():
    digits = sources.load_digits().train[:40]
    angle, scale = torch.linspace(-30, 30, 40), torch.linspace(0.7, 1.2, 40).roll(17)
    shift = torch.stack((torch.arange(40) - 20, (torch.arange(40) * 7) % 33 - 16), 1)
    mapped = perturb.affine(digits, angle.deg2rad(), scale, shift.float())
    middle = F.pad(digits[:, 2:-2, 2:-2], (18, 18, 12, 12))
    for number, numbers in enumerate(zip(angle.tolist(), shift.tolist(), scale.tolist())):
        assert torch.equal(mapped[number], affine(middle[number, None], *numbers, shear=[0.0])[0])


def test_pieces_of_ink_are_counted():
    digits = torch.zeros(3, 28, 28, dtype=torch.uint8)
    digits[0, 5:20, 10] = digits[0, 0, 20] = 200  # the last is outside of what counts
    digits[0, 12, 13] = 1  # a speck, however faint
    digits[2, 25, 5:9] = digits[2, 24, 9] = 90  # on the last row that counts, and diagonally on
    assert perturb.count_pieces(digits).tolist() == [2, 0, 1]


# Left, top, right, bottom of digits, and their images: apart in x; not quite; apart in y; centres in one cell; one on a
# border, which belongs to the right; or to the left; never to an image before the one begun last.
JOINS = [
    ([(2, 6, 10, 14), (18, 6, 26, 14)], [0, 0]),
    ([(2, 6, 10, 14), (17, 6, 26, 14)], [0, 1]),
    ([(6, 2, 14, 10), (6, 18, 14, 36)], [0, 0]),
    ([(0, 0, 4, 8), (13, 0, 17, 8)], [0, 1]),
    ([(18, 0, 22, 8), (30, 0, 34, 8)], [0, 1]),
    ([(18, 0, 22, 8), (6, 0, 10, 8)], [0, 1]),
    ([(2, 6, 10, 14), (2, 6, 10, 14), (30, 6, 34, 14), (50, 6, 54, 14)], [0, 1, 1, 1]),
]


def test_a_digit_joins_the_image_begun_last_where_it_is_apart_and_in_a_cell_of_its_own():
    for edges, image in JOINS:
        low, high = np.split(np.array(edges), 2, axis=1)
        assert perturb.fill_images(np.hstack(((low + high) / 2, high - low)) / PIXELS.numpy()).tolist() == image


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
    leftover = path.with_name(".killed.tmp")
    leftover.touch()
    os.utime(leftover, (0, 0))
    for damaged in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]):
        path.write_bytes(damaged)
        assert load(task, tmp_path).fingerprint == splits.fingerprint
        assert path.read_bytes() == whole
    assert not leftover.exists()
    assert [len(split) for split in three(load(task, tmp_path, sizes=(1, 2, 3)))] == [1, 2, 3]
    monkeypatch.setattr(data, "SEED", data.SEED + 1)
    images = torch.cat([split.images for split in (*three(splits), *three(load(task, tmp_path)))]).flatten(1)
    assert torch.corrcoef(images.float()).fill_diagonal_(0).max() < 0.8, "no two images are alike"


def test_generated_images_are_used_where_they_cannot_be_kept_and_that_is_said(tmp_path):
    (tmp_path / "made").touch()
    told = []
    assert len(load("det", tmp_path, sizes=(4, 2, 2), log=told.append).train) == 4
    assert [text.split(": ")[1] for text in told[1:]] == ["the images are used but not kept"]


# --- Split and Splits
@TASKS
def test_an_index_chooses_images_with_all_that_belongs_to_them(task, tmp_path):
    split = load(task, tmp_path).train
    chosen = torch.arange(60) % 56 == 3
    cases = [(3, [3]), (-1, [59]), (slice(2, 5), [2, 3, 4]), (slice(99), [*range(60)]), (slice(0), []), ([], [])]
    for index, numbers in [*cases, ([4, 1, 1], [4, 1, 1]), (torch.tensor([4, 1]), [4, 1]), (chosen, [3, 59])]:
        part = split[index]
        assert (part.task, len(part)) == (task, len(numbers))
        for name in ("images", "labels", "digits", "visible", "pieces"):
            assert torch.equal(getattr(part, name), getattr(split, name)[numbers])
        assert part.lists is None if task == "loc" else str(part.lists) == str([split.lists[i] for i in numbers])
    with pytest.raises(IndexError):
        split[60]
    bare = Split(split.images, split.labels)[chosen].to(torch.device("meta"))
    assert (bare.images.device.type, bare.labels.device.type, len(bare)) == ("meta", "meta", 2)


def test_the_fingerprint_is_of_all_that_training_sees(tmp_path, monkeypatch):
    """Of generated images but for a pixel that another processor rounds otherwise."""
    splits = load("loc", tmp_path)
    prints = [splits.fingerprint]
    splits.train.images[0, 0, 5, 5] ^= 1
    assert Splits(*three(splits), "digits").fingerprint == prints[0]
    for split, field in product(three(splits), ("images", "labels")):
        prints.append(Splits(*three(splits), "course").fingerprint)
        getattr(split, field).view(-1)[0] += 1
    assert prints[5] == prints[6] == Splits(*three(splits), "course").fingerprint
    noise = perturb.NOISE["loc"]
    for changed in (replace(noise, mean=noise.mean + 0.001), replace(noise, std=noise.std + 0.001)):
        monkeypatch.setitem(perturb.NOISE, "loc", changed)
        prints.append(load("loc", tmp_path / str(changed.mean)).fingerprint)
    assert len({*prints}) == len(prints) - 1


# --- the course's files
@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What stands in for the course's files: per task the splits, with float32 images."""
    generated = {task: three(load(task, tmp_path_factory.mktemp(task), sizes=(20, 10, 10))) for task in COURSE}
    return {task: [Split(s.images / 255, s.labels, s.lists) for s in splits] for task, splits in generated.items()}


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
def test_course_files_are_loaded_whole_unless_fewer_are_asked_for(task, course, content, monkeypatch):
    """Another year's, which hold more or fewer images than this year's, too; without the other task's."""
    monkeypatch.setitem(data.FULL, task, (15, 12, 10))
    for name in COURSE["det" if task == "loc" else "loc"]:
        (course / name).unlink()
    for sizes, counts in ((None, (20, 10, 10)), ((15, 12, 10), (20, 10, 10)), ((7, 99, 3), (7, 10, 3))):
        splits = load(task, course, None, sizes)
        assert (splits.task, splits.source) == (task, "course")
        for split, expected, count in zip(three(splits), content[task], counts):
            assert torch.equal(split.images, expected.images[:count])
            assert torch.equal(split.labels, expected.labels[:count])
            assert task == "loc" or labels.same_digits(labels.lists_to_grid(split.lists), split.labels)


FORMS = {
    "pairs": lambda x, y: [*zip(x, y)],
    "pairs of arrays": lambda x, y: tuple(zip(x.numpy(), y.numpy())),
    "Subset": lambda x, y: Subset(TensorDataset(x.flip(0), y.flip(0)), np.arange(9, -1, -1)),
    "Subset of pairs": lambda x, y: Subset([*zip(x, y)], range(10)),
    "ConcatDataset": lambda x, y: ConcatDataset([TensorDataset(x[:4], y[:4]), [*zip(x[4:], y[4:])]]),
    "no channel, float64": lambda x, y: TensorDataset(x[:, 0].double(), torch.nn.Parameter(y.double())),
    "NaN": lambda x, y: TensorDataset(x, torch.where(y > -1, y, torch.nan)),
    "1.4": lambda x, y: TensorDataset(x.put(x.argmax(), torch.tensor(1.4)), y),
}


@TASKS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_course_files_may_be_of_several_forms(task, protocol, course, content):
    """Only that pixels are clipped is said."""
    images, targets = content[task][1].images, content[task][1].labels
    for form, change in FORMS.items():
        told, path = [], course / COURSE[task][1]
        torch.save(change(images, targets), path, pickle_protocol=protocol)
        split = load(task, course, "course", None, told.append).val
        assert told[1:] == [f"{path.name}: clipped pixels outside [0, 1] in 1 image(s)"] * (form == "1.4")
        assert torch.equal(split.images, images.put(images.argmax(), torch.tensor(1.0)) if form == "1.4" else images)
        assert torch.equal(split.labels.nan_to_num(-1), torch.where(targets > -1, targets, -1)), form


@pytest.mark.parametrize("form", [tuple, torch.Tensor.clone, torch.Tensor.tolist, lambda boxes: [*boxes.numpy()]])
def test_lists_of_boxes_may_be_of_anything(form, course, content):
    empty = torch.tensor([labels.NO_DIGIT])  # one of the ways in which an empty cell could be written
    lists = [torch.cat((boxes, empty)) for boxes in content["det"][1].lists]
    torch.save(tuple(map(form, lists)), course / LISTS)
    assert all(map(torch.equal, load("det", course, "course", None).val.lists, lists))


ENDS_THE_PROCESS = type("Attack", (), {"__reduce__": lambda self: (os._exit, (13,))})()


@pytest.mark.parametrize("name", ["localization_test.pt", "detection_train.pt", "list_y_true_val.pt"])
def test_a_course_file_that_cannot_be_used_is_named(name, course):
    path, whole, task = course / name, (course / name).read_bytes(), "loc" if name in COURSE["loc"] else "det"
    garbage = [b"", whole[:100], whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]]
    pages = [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\n", b"<!DOCTYPE html><html>"]
    cases = [(damaged, f"{name}: damaged, or not what torch.save writes: ") for damaged in garbage]
    for damaged, message in [*cases, *((page, f"{name}: .*: a web page or a Git LFS pointer") for page in pages)]:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            load(task, course, "course")
    for protocol in (2, 4):
        torch.save([(0, ENDS_THE_PROCESS)], path, pickle_protocol=protocol)
        with pytest.raises(DataError, match=rf"{name}: refused, it asks for {os.name}\._exit, which could run code"):
            load(task, course, "course")
    path.unlink()
    for source in (None, "course"):
        with pytest.raises(DataError, match=rf"expected the course's \d files, found no {name}$"):
            load(task, course, source)


def test_what_a_course_file_may_ask_for_is_known_and_cannot_run_code():
    parts = {"torch.utils.data.dataset": "TensorDataset Subset ConcatDataset", "collections": "OrderedDict"}
    parts |= {"builtins": "range", "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter", "numpy": "ndarray dtype"}
    for core in ("numpy.core", "numpy._core"):
        parts |= {f"{core}.multiarray": "_reconstruct scalar", f"{core}.numeric": "_frombuffer"}
    parts["numpy.dtypes"] = "BoolDType UInt8DType Int32DType Int64DType Float16DType Float32DType Float64DType"
    assert {*sources.ALLOWED} == {f"{module}.{name}" for module, names in parts.items() for name in names.split()}


X, Y = torch.zeros(10, 1, 48, 60), torch.tensor(labels.NO_DIGIT).repeat(10, 1)
ONE, BOX = TensorDataset(X[:1], Y[:1]), torch.tensor((1, 0.5, 0.2, 0.2, 0.2, 1))
LOC, DET, LISTS = "localization_val.pt", "detection_val.pt", "list_y_true_val.pt"
PAIRS = "expected a TensorDataset of images and labels, or a list of pairs of them: "
SOMETHING_ELSE = [
    (LOC, TensorDataset(X), f"{PAIRS}not enough values"),
    (LOC, {"images": X, "labels": Y}, f"{PAIRS}found dict"),
    (LOC, [(X[0], Y[0]), 3], PAIRS),
    (LOC, [(X[0], Y[0]), (X[0], Y[0, :5])], f"{PAIRS}stack expects each tensor to be equal size"),
    (LOC, TensorDataset(torch.cat((X[:5] + 1.01, X[5:])), Y), r"image 0: expected pixels in \[0, 1\], found 1.01"),
    (DET, TensorDataset(X, Y), "expected labels .10, 2, 3, 6. in"),
    (LOC, TensorDataset(X, Y * torch.nan), "image 0: expected pc 0 or 1, found nan"),
    (LOC, Subset(TensorDataset(X, Y), [0, 10]), f"{PAIRS}.*out of bounds"),
    (LISTS, torch.zeros(10, 6), "expected 10 lists of boxes"),
    (LISTS, [[BOX]] * 9, "expected labels .10, 2, 3, 6. in .* found .9, "),
    (LISTS, [[BOX, BOX]] + [[BOX]] * 9, "image 0: two digits"),
    (LISTS, [[BOX]] * 9 + [[BOX[:5]]], "expected 10 lists of boxes of six numbers: found boxes of .5."),
    (LISTS, [[BOX]] * 9 + [[BOX * torch.tensor((1, 1, 1, 1, 1, 2))]], "image 9: expected a class from 0 to 1, found 2"),
    (LISTS, [[BOX]] * 10, "not the same digits as in detection_val.pt"),
    # A few numbers that stand for many gigabytes:
    (LOC, Subset(ONE, [0] * 100_000), "refused, found 288,600,000 numbers"),
    (LOC, Subset(ONE, range(10**18)), "refused, found"),
    (LOC, ConcatDataset([ONE] * 1000), "refused, found"),
    (LOC, [ONE[0]] * 10_000, "refused, found"),
    (LOC, TensorDataset(X[:1].expand(10**7, 1, 48, 60), Y[:1].expand(10**7, 6)), "refused, found"),
    (LOC, [(X[0].tolist(), Y[0].tolist())], "found something else than tensors and arrays"),
    (LOC, TensorDataset(X[:0], Y[:0]), "refused, found 0"),
    (LISTS, [[BOX] * 10_000] * 10, "refused, found"),
    (LISTS, [[torch.zeros(1).expand(10**12)]] * 10, "found boxes of .1000000000000."),
]


@pytest.mark.parametrize(("name", "stored", "message"), SOMETHING_ELSE)
def test_a_course_file_that_holds_something_else(name, stored, message, course):
    torch.save(stored, course / name)
    with pytest.raises(DataError, match=f"{name}: .*{message}") as raised:
        load("loc" if name in COURSE["loc"] else "det", course, "course")
    assert "\n" not in str(raised.value)


# --- sources
def test_what_makes_no_sense_is_named(tmp_path, monkeypatch):
    for named in ({"source": "imagenet"}, {"sizes": (0, 1, 1)}, {"sizes": (1, 1)}):
        with pytest.raises(ValueError, match=r"^(DATA_SOURCE: expected one of|sizes: expected three) .*, found .*$"):
            load("loc", tmp_path, **named)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "mistyped"))
    for source in ("", "course"):
        monkeypatch.setenv("DATA_SOURCE", source)
        with pytest.raises(DataError, match=r"^DATA_DIR: expected a folder with the course's files, found none .*$"):
            load("loc", None, None)
    monkeypatch.setenv("DATA_SOURCE", "imagenet")
    with pytest.raises(ValueError, match=r"^DATA_SOURCE: expected one of course, mnist, digits, found 'imagenet'$"):
        load("loc", tmp_path, None)


def test_the_named_source_is_taken_or_the_first_that_is_there(course, monkeypatch):
    def taken(source=None, folder=course):
        return load("det", folder, source, (5, 5, 5)).source

    assert taken() == "course"
    monkeypatch.setenv("DATA_DIR", str(course))  # of the course's files, where no folder is given
    assert taken(folder=None) == "course"
    monkeypatch.setattr(sources, "load_mnist", lambda folder: replace(sources.load_digits(), source="mnist"))
    for name in sources.NAMES:
        monkeypatch.setenv("DATA_SOURCE", name)
        assert (taken(), taken("digits"), taken("course")) == (name, "digits", "course")
    monkeypatch.setenv("DATA_SOURCE", "")
    for name in COURSE["det"]:
        (course / name).unlink()
    assert taken() == "mnist"


@pytest.fixture(scope="module")
def packed():
    """MNIST's four packed files, of the right form."""
    files = {}
    for path, shape in zip(
        sources.mnist_files(data.FOLDER), ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
    ):
        # Two zeros, 8 for unsigned bytes, the number of axes, their lengths, the numbers.
        head = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">i4").tobytes()
        files[f"{path.name}.gz"] = gzip.compress(head + b"\7" * int(np.prod(shape)), 1)
    return files


@pytest.fixture
def mirror(packed, tmp_path, monkeypatch):
    """The folder that MNIST's server serves."""
    (tmp_path / "server").mkdir()
    for name, content in packed.items():
        (tmp_path / "server" / name).write_bytes(content)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": print})
    monkeypatch.setattr(MNIST, "resources", [(name, hashlib.md5(packed[name]).hexdigest()) for name in packed])
    monkeypatch.setenv("no_proxy", "*")
    serve = functools.partial(handler, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield tmp_path / "server"
        server.shutdown()


def test_mnist_is_downloaded_and_unpacked_and_half_a_file_is_not_believed(mirror, packed, tmp_path, monkeypatch):
    digits = sources.load_mnist(tmp_path)
    assert [len(part) for part in (digits.train, digits.train_classes, digits.test)] == [60_000, 60_000, 10_000]
    assert (digits.test[9, 27, 27], digits.test_classes[9], digits.source) == (7, 7, "mnist")
    *_, path = sources.mnist_files(tmp_path)
    gz, whole = path.with_name(f"{path.name}.gz"), path.read_bytes()
    gz.write_bytes(packed[gz.name][:-9])
    for half in (whole[:-1], b"", None):
        path.unlink() if half is None else path.write_bytes(half)
        sources.load_mnist(tmp_path)
        assert (path.read_bytes(), gz.read_bytes()) == (whole, packed[gz.name])
        monkeypatch.setattr(MNIST, "mirrors", NOWHERE)  # the packed file is beside it
    for damaged in (whole[:-1] + b"\n", b"x" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="raw: expected MNIST's files; remove them if they are damaged"):
            sources.load_mnist(tmp_path)


@pytest.mark.parametrize("fault", ["no internet", "no answer", "not found", "a web page"])
def test_without_mnist_the_next_source_is_used_soon_and_that_is_said_in_a_line(fault, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "NO_INTERNET_AFTER", 0.5)
    for path in mirror.iterdir():
        path.write_bytes(b"<html>") if fault == "a web page" else path.unlink()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if fault.startswith("no "):
            there = [f"http://127.0.0.1:{silent.getsockname()[1]}/"]
            monkeypatch.setattr(MNIST, "mirrors", there if fault == "no answer" else NOWHERE)
        told, before = [], time.monotonic()
        assert load("loc", tmp_path, None, (4, 2, 2), told.append).source == "digits"
        assert time.monotonic() - before < 5
    assert told[0].startswith("data: no MNIST, ")
    assert "\n" not in told[0]
    assert told[1:] == ["data: images generated from scikit-learn's digits"]
    assert not any(path.exists() for path in sources.mnist_files(tmp_path))
    with pytest.raises(DataError, match=r"MNIST.raw: "):
        load("loc", tmp_path, "mnist")
    assert socket.getdefaulttimeout() is None


# --- full sets
NEEDS_MNIST = pytest.mark.skipif(
    not all(path.is_file() for path in sources.mnist_files(data.FOLDER)), reason="no MNIST in data/MNIST/raw"
)
WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "reference_weights"
REFERENCE = [  # the course's mean and deviation, the published score, and what the notebooks say of validation images
    ("det", models.SkreNet2, "SkreNet_2.pt", (0.2989, 0.1967), 0.8304, 0.829),
    ("det", models.SimpleNet2, "SimpleNet_2.pt", (0.2989, 0.1967), 0.7900, 0.794),
    ("loc", models.SimpleNet, "SimpleNet.pt", (0.4171, 0.2138), 0.5232, 0.522),
]


@pytest.fixture(scope="module")
def full():
    return {task: data.load(task, "mnist", log=lambda text: None) for task in ("loc", "det")}


@NEEDS_MNIST
@TASKS
def test_the_training_set_is_like_the_course_s(task, full):
    for split in three(full[task]):
        labels.check_split(split.images, split.labels, task, "generated")
    figures = checks.compare(full[task])
    assert [check.name for check in figures] == [*checks.COURSE[task]]
    assert not [check for check in figures if not abs(check.ours - check.course) <= check.tolerance]
    if task == "loc":
        scores = utils.score(analysis.visible_outputs(split), split.labels)
        assert scores["iou"] == pytest.approx(0.911, abs=0.004)


@NEEDS_MNIST
def test_digits_are_split_once_and_drawn_as_often_as_they_should(full):
    """Localization draws each once, detection's training set each zero and one three times, out of the same split."""
    splits = [split for task in ("loc", "det") for split in (full[task].train, full[task].val)]
    train, val, more, few = (split.digits[split.digits >= 0].bincount(minlength=60_000) for split in splits)
    assert (train + val == 1).all()
    assert train.sum() == 54_000
    assert torch.equal(more, 3 * train * (sources.load_mnist(data.FOLDER).train_classes < 2))
    assert (few <= 3 * val).all()


@NEEDS_MNIST
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the reference's weights are not there")
@pytest.mark.parametrize(("task", "network", "file", "normal", "published", "said"), REFERENCE)
def test_the_reference_s_networks_score_what_they_did_on_the_course_s(
    task, network, file, normal, published, said, full
):
    """On validation and test images; and on validation images alone what the notebooks say."""
    built, stored = network(), torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)
    built.load_state_dict(dict(zip(built.state_dict(), stored.values(), strict=True)))  # other names, the same order
    model, splits = nn.Sequential(utils.Normalize(*normal), built), (full[task].val, full[task].test)
    outputs = [utils.infer(model, split.images) for split in splits]
    for count, expected in (
        (2, pytest.approx(published, abs=checks.REFERENCE_TOLERANCE)),
        (1, pytest.approx(said, abs=0.001)),
    ):
        targets = torch.cat([split.labels for split in splits[:count]])
        assert utils.reference_means(torch.cat(outputs[:count]), targets)["reference_mean"] == expected
