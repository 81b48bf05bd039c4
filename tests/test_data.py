"""Images: generated ones, the course's files, the sources of digits; what they must be and what is refused."""

import math
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import combinations, product
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import both_tasks
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms.functional import affine

import data
import models
import utils
from data import DataError, Split, Splits, checks, labels, perturb, sources
from training import analysis

COURSE = {task: [path.name for path in sources.course_files(data.FOLDER, task)] for task in ("loc", "det")}
PIXELS = torch.tensor((60, 48, 60, 48))
KINDS = product(("train", "t10k"), ("images-idx3", "labels-idx1"))
MNIST_FILES = [Path("MNIST", "raw", f"{part}-{kind}-ubyte") for part, kind in KINDS]
three = attrgetter("train", "val", "test")


@pytest.fixture(autouse=True)
def without_internet(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


def load(task, folder, source="digits", sizes=(60, 20, 20), log=str):
    return data.load(task, source, sizes, folder, log)


# --- generated images
@both_tasks
def test_generated_images_are_valid_share_no_digit_and_have_boxes_around_the_ink(task, tmp_path, monkeypatch):
    """Tight, on whole pixels, 8 apart, and one in a cell however borders are read. What is not black is a digit."""
    monkeypatch.setattr(perturb, "make_noise", lambda count, *more: torch.zeros(count, 48, 60, dtype=torch.uint8))
    splits, (_, train_classes, _, test_classes) = load(task, tmp_path, sizes=(600, 150, 150)), sources.load_digits()
    for split, classes in zip(three(splits), (train_classes, train_classes, test_classes)):
        labels.check_split(split.images, split.labels, task)
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.float32)
        digit = split.labels[..., 0] == 1
        assert torch.equal(split.digits >= 0, digit)
        assert torch.equal(split.pieces > 0, digit)
        assert torch.equal(split.visible, split.labels)
        assert torch.equal(classes[split.digits[digit]], split.labels[digit][:, 5].long())
        assert len(classes[split.digits[digit]].unique()) == labels.CLASSES[task]
        lists = split.lists or [row[None][row[None, 0] == 1] for row in split.labels]
        for image, digits in zip(split.images[:, 0] > 0, lists):
            boxes = digits[:, 1:5].double() * PIXELS
            edges = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
            torch.testing.assert_close(edges, edges.round(), rtol=0, atol=1e-4)
            for one, two in combinations(edges.round().tolist(), 2):
                assert max(one[0] - two[2], two[0] - one[2], one[1] - two[3], two[1] - one[3]) >= 8
                for dx, dy in product((0, 1), repeat=2):
                    cells = {((box[0] + box[2] - dx) // 40, (box[1] + box[3] - dy) // 48) for box in (one, two)}
                    assert len(cells) == 2
            for left, top, right, bottom in edges.round().int().tolist():
                inside = image[top : bottom + 1, left : right + 1]
                assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
                inside[:] = False
            assert not image.any()
    digits = splits.train.labels[..., 0].sum() / len(splits.train)  # the course's have 10/11 and 1.27
    assert digits == pytest.approx(10 / 11, abs=0.001) if task == "loc" else digits > 1.2
    train, val = (set(split.digits[split.digits >= 0].tolist()) for split in (splits.train, splits.val))
    assert not train & val


def test_digits_are_mapped_as_torchvision_maps_them():
    digits, *_ = sources.load_digits()
    warped, rng = perturb.warp_digits(digits[:60], np.random.default_rng(5)), np.random.default_rng(5)
    drawn = rng.uniform(-30, 30, 60), rng.uniform(0.7, 1.2, 60), rng.uniform((-20, -16), (20, 16), (60, 2)).round()
    middle = F.pad(digits[:60, None, 2:-2, 2:-2], (18, 18, 12, 12))
    for image, expected, angle, scale, shift in zip(warped, middle, *(values.tolist() for values in drawn)):
        assert torch.equal(image, affine(expected, angle, shift, scale, shear=[0.0])[0])


@both_tasks
def test_noise_is_blurred_alike_along_both_axes(task):
    """Pixels side by side correlate as Gaussian-filtered ones do, by exp(-1 / (2 sigma)^2); clipped, a bit less."""
    expected = sum(share * math.exp(-1 / (2 * sigma) ** 2) for sigma, share in perturb.NOISE[task][2] if sigma)
    noise = perturb.make_noise(50, task, 1.0, np.random.default_rng(3)).float()
    for beside in (noise[:, :-1, 1:], noise[:, 1:, :-1]):
        pairs = torch.stack((noise[:, 1:, 1:].flatten(), beside.flatten()))
        assert torch.corrcoef(pairs)[0, 1].item() == pytest.approx(expected, abs=0.01)


def test_pieces_of_ink_are_counted():
    digits, pool = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.arange(3)
    digits[0, 5:20, 10] = digits[0, 0, 20] = 200  # the last is outside of what counts
    digits[0, 12, 13] = 1  # a speck, however faint
    digits[2, 25, 5:9] = digits[2, 24, 9] = 90  # on the last row that counts, and diagonally on
    generated = perturb.make_images(digits, pool, pool, "loc", 3, [1])
    assert {*zip(generated["digits"].tolist(), generated["pieces"].tolist())} == {(0, 2), (1, 0), (2, 1)}


@both_tasks
def test_one_seed_gives_the_same_bytes_kept_until_they_are_damaged_also_two_at_once(task, tmp_path, monkeypatch):
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
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(partial(load, task), [tmp_path] * 2)
        assert one.fingerprint == two.fingerprint == splits.fingerprint
        assert path.read_bytes() == whole
    assert [*path.parent.iterdir()] == [path]
    monkeypatch.setattr(data, "SEED", data.SEED + 1)
    images = torch.cat([split.images for split in (*three(splits), *three(load(task, tmp_path)))]).flatten(1)
    assert torch.corrcoef(images.float()).fill_diagonal_(0).max() < 0.8, "no two images are alike"


def test_generated_images_are_used_where_they_cannot_be_kept_and_that_is_said(tmp_path):
    (tmp_path / "made").touch()
    told = []
    assert [len(split) for split in three(load("loc", tmp_path, sizes=(1, 2, 3), log=told.append))] == [1, 2, 3]
    assert [text.split(": ")[1] for text in told[1:]] == ["the images are used but not kept"]


# --- Split and Splits
@both_tasks
def test_an_index_chooses_images_with_all_that_belongs_to_them(task, tmp_path):
    split = load(task, tmp_path).train
    mask = torch.arange(60) % 56 == 3
    cases = [(-1, [59]), (slice(2, 5), [2, 3, 4]), ([4, 1, 1], [4, 1, 1]), (torch.tensor([4, 1]), [4, 1]), ([], [])]
    for index, numbers in [*cases, (mask, [3, 59]), (mask.tolist(), [3, 59])]:
        part = split[index]
        assert (part.task, len(part)) == (task, len(numbers))
        for name in ("images", "labels", "digits", "visible", "pieces"):
            assert torch.equal(getattr(part, name), getattr(split, name)[numbers])
        assert part.lists is None if task == "loc" else str(part.lists) == str([split.lists[i] for i in numbers])
    bare = Split(split.images, split.labels)[mask].to(torch.device("meta"))
    assert (bare.images.device.type, bare.labels.device.type, len(bare)) == ("meta", "meta", 2)


def test_the_fingerprint_is_of_all_that_training_sees(tmp_path, monkeypatch):
    """Of generated images but for a pixel that another processor rounds otherwise."""
    splits = load("loc", tmp_path)
    first, prints = splits.fingerprint, []
    splits.train.images[0, 0, 5, 5] ^= 1
    assert Splits(*three(splits), "digits").fingerprint == first
    for split, field in product(three(splits), ("images", "labels")):
        prints.append(Splits(*three(splits), "course").fingerprint)
        getattr(split, field).view(-1)[0] += 1
    assert prints[4] == prints[5] == Splits(*three(splits), "course").fingerprint
    mean, std, parts = perturb.NOISE["loc"]
    for changed in ((mean + 0.001, std), (mean, std + 0.001)):
        monkeypatch.setitem(perturb.NOISE, "loc", (*changed, parts))
        prints.append(load("loc", tmp_path / str(changed)).fingerprint)
    assert len({first, *prints}) == len(prints)


# --- the course's files
@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What stands in for the course's files: per task the splits, with float32 images."""
    generated = {task: three(load(task, tmp_path_factory.mktemp(task), sizes=(20, 10, 10))) for task in COURSE}
    return {task: [Split(s.images / 255, s.labels, s.lists) for s in splits] for task, splits in generated.items()}


LISTS_OF = torch.Tensor.tolist, lambda boxes: [*boxes.clone()], torch.Tensor.numpy


@pytest.fixture
def course(content, tmp_path):
    """A folder with all nine files, the lists of boxes in three forms."""
    for task, splits in content.items():
        for number, split in enumerate(splits):
            torch.save(TensorDataset(split.images, split.labels), tmp_path / COURSE[task][number])
            if task == "det":
                torch.save([*map(LISTS_OF[number], split.lists)], tmp_path / COURSE[task][3 + number])
    return tmp_path


@both_tasks
def test_course_files_are_loaded_whole_unless_fewer_are_asked_for(task, course, content, monkeypatch):
    """Another year's, which hold more or fewer images than this year's, too; without the other task's."""
    monkeypatch.setitem(data.FULL, task, (15, 12, 10))
    for name in COURSE["det" if task == "loc" else "loc"]:
        (course / name).unlink()
    for sizes, counts in (((), (20, 10, 10)), ((15, 12, 10), (20, 10, 10)), ((7, 99, 3), (7, 10, 3))):
        splits = load(task, course, None, sizes)
        assert (splits.task, splits.source) == (task, "course")
        for split, expected, count in zip(three(splits), content[task], counts):
            for name in ("images", "labels"):
                assert torch.equal(getattr(split, name), getattr(expected, name)[:count])
            assert task == "loc" or all(map(torch.equal, split.lists, expected.lists[:count]))


FORMS = {
    "pairs": lambda x, y: [*zip(x, y)],
    "pairs of arrays": lambda x, y: tuple(zip(x.numpy(), y.numpy())),
    "Subset": lambda x, y: Subset(TensorDataset(x.flip(0), y.flip(0)), np.arange(9, -1, -1)),
    "ConcatDataset": lambda x, y: ConcatDataset([TensorDataset(x[:4], y[:4]), [*zip(x[4:], y[4:])]]),
    "no channel, float64": lambda x, y: TensorDataset(x[:, 0].double(), nn.Parameter(y.double())),
    "NaN": lambda x, y: TensorDataset(x, torch.where(y > -1, y, torch.nan)),
    "1.4": lambda x, y: TensorDataset(x.put(x.argmax(), torch.tensor(1.4)), y),
}
OLD_FORM = {"_use_new_zipfile_serialization": False}


@both_tasks
@pytest.mark.parametrize("how", [{}, OLD_FORM, {"pickle_protocol": 4}, {"pickle_protocol": 5}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_course_files_may_be_of_several_forms(task, how, form, course, content):
    """Only that pixels are clipped is said."""
    images, targets, told = content[task][1].images, content[task][1].labels, []
    torch.save(FORMS[form](images, targets), course / COURSE[task][1], **how)
    split = load(task, course, "course", (), told.append).val
    said = f"{COURSE[task][1]}: clipped pixels outside [0, 1] in 1 image(s)"
    assert told[1:] == [said] * (form == "1.4")
    assert torch.equal(split.images, images.put(images.argmax(), torch.tensor(1.0)) if form == "1.4" else images)
    assert torch.equal(split.labels.nan_to_num(-1), torch.where(targets > -1, targets, -1))


def test_what_a_course_file_may_ask_for_is_known_and_cannot_run_code():
    parts = {"torch.utils.data.dataset": "TensorDataset Subset ConcatDataset", "collections": "OrderedDict"}
    parts |= {"builtins": "range", "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter", "numpy": "ndarray dtype"}
    for core in ("numpy.core", "numpy._core"):
        parts |= {f"{core}.multiarray": "_reconstruct scalar", f"{core}.numeric": "_frombuffer"}
    parts["numpy.dtypes"] = "BoolDType UInt8DType Int32DType Int64DType Float16DType Float32DType Float64DType"
    assert {*sources.ALLOWED} == {f"{module}.{name}" for module, names in parts.items() for name in names.split()}


X, Y = torch.zeros(10, 1, 48, 60), torch.tensor(labels.NO_DIGIT).repeat(10, 1)
ONE, BOX = TensorDataset(X[:1], Y[:1]), torch.tensor((1, 0.5, 0.2, 0.2, 0.2, 1))
FILES = LOC, DET, LISTS = "localization_val.pt", "detection_val.pt", "list_y_true_val.pt"


@pytest.mark.parametrize(("name", "stored", "message"), [
    *((name, b"<html>", "damaged, or not what torch.save writes: ") for name in FILES),
    *((name, [(0, os._exit)], rf"refused, it asks for {os.name}\._exit, which could run code") for name in FILES),
    (LOC, TensorDataset(X), "no set of images and labels: not enough values"),
    (LOC, [(X[0], Y[0]), 3], "no set of images and labels: "),
    (LOC, TensorDataset(torch.cat((X[:5] + 1.01, X[5:])), Y), r"image 0: expected pixels in \[0, 1\], found 1.01"),
    (DET, TensorDataset(X, Y), r"expected shape \(10, 2, 3, 6\), found \(10, 6\)"),
    (LOC, Subset(ONE, [0] * 100_000), "no set of .*: refused, found 288,600,000 numbers in"),
    (LISTS, [[BOX]] * 9, "expected 10 lists of at most six boxes of six numbers: found others"),
    (LISTS, [[BOX] * 7] * 10, "expected 10 lists of .*: found others"),
    (LISTS, [[BOX]] * 9 + [[BOX[:5]]], "expected 10 lists of .*: "),
    (LISTS, [[BOX, BOX]] + [[BOX]] * 9, "image 0: two digits"),
    (LISTS, [[BOX]] * 9 + [[BOX * torch.nan]], "not the same digits as in detection_val.pt"),
])  # fmt: skip
def test_a_course_file_that_holds_something_else_or_is_missing(name, stored, message, course):
    torch.save(stored, course / name)
    if isinstance(stored, bytes):
        (course / name).write_bytes(stored)
    with pytest.raises(DataError, match=f"{name}: .*{message}") as raised:
        load("loc" if name == LOC else "det", course, "course")
    assert "\n" not in str(raised.value)
    (course / name).unlink()
    with pytest.raises(DataError, match=rf"expected the course's \d files, found no {name}$"):
        load("loc" if name == LOC else "det", course, None)


# --- sources
def test_the_named_source_is_taken_or_the_first_that_is_there(course, monkeypatch):
    def taken(source=None, folder=course):
        return load("det", folder, source, (5, 5, 5)).source

    assert taken() == "course"
    monkeypatch.setenv("DATA_DIR", str(course))  # of the course's files, where no folder is given
    assert taken(folder=None) == "course"
    monkeypatch.setattr(sources, "load_mnist", lambda folder: sources.load_digits())
    for name in sources.NAMES:
        monkeypatch.setenv("DATA_SOURCE", name)
        assert (taken(), taken("digits"), taken("course")) == (name, "digits", "course")
    monkeypatch.setenv("DATA_SOURCE", "")
    for name in COURSE["det"]:
        (course / name).unlink()
    assert taken() == "mnist"
    with pytest.raises(DataError, match=r'^task: expected "loc" or "det", found \'LOC\'$'):
        load("LOC", course)


def test_mnist_is_read_and_a_file_cut_off_is_not_believed(tmp_path):
    paths, shapes = [tmp_path / name for name in MNIST_FILES], ((60, 28, 28), (60,), (20, 28, 28), (20,))
    paths[0].parent.mkdir(parents=True)
    for path, shape in zip(paths, shapes):
        # Two zeros, 8 for unsigned bytes, the number of axes, their lengths, the numbers.
        head = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">i4").tobytes()
        path.write_bytes(head + b"\7" * math.prod(shape))
    assert [(part.shape, part.max()) for part in sources.load_mnist(tmp_path)] == [(shape, 7) for shape in shapes]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"raw: expected MNIST's files; remove them if damaged: "):
        sources.load_mnist(tmp_path)


def test_without_mnist_the_next_source_is_used_soon_and_that_is_said_in_a_line(tmp_path, monkeypatch):
    told, timeouts, download = [], [], MNIST.download
    monkeypatch.setattr(MNIST, "download", lambda mnist: timeouts.append(socket.getdefaulttimeout()) or download(mnist))
    assert load("loc", tmp_path, None, (4, 2, 2), told.append).source == "digits"
    assert told[0].startswith("data: no MNIST, ")
    assert told[1:] == ["data: images generated from scikit-learn's digits"]
    with pytest.raises(DataError, match=r"MNIST.raw: [^\n]+$"):
        load("loc", tmp_path, "mnist")
    assert timeouts == [4, 4]  # seconds until a server that never answers is given up
    assert socket.getdefaulttimeout() is None


# --- full sets
NEEDS_MNIST = pytest.mark.skipif(not (data.FOLDER / MNIST_FILES[0]).is_file(), reason="no MNIST in data/MNIST/raw")
WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "reference_weights"


full = cache(partial(data.load, source="mnist", log=str))


@NEEDS_MNIST
@both_tasks
def test_the_training_set_is_like_the_course_s(task):
    assert not [check for check in checks.compare(full(task)) if not abs(check.ours - check.course) <= check.tolerance]
    if task == "loc":
        scores = utils.score(analysis.labels_as_outputs(full(task).test.visible), full(task).test.labels)
        assert scores["iou"] == pytest.approx(0.911, abs=0.004)


@NEEDS_MNIST
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the reference's weights are not there")
@pytest.mark.parametrize(("task", "name", "published"), [
    ("det", "SkreNet_2", 0.8304), ("det", "SimpleNet_2", 0.7900), ("loc", "SimpleNet", 0.5232),
])  # fmt: skip
def test_the_reference_s_networks_score_as_on_the_course_s(task, name, published):
    """Which are the only images that they have ever seen."""
    normal = (checks.COURSE[task][f"{moment} of all pixels"][0] for moment in ("mean", "standard deviation"))
    network = getattr(models, name.replace("_", ""))()
    stored = torch.load(WEIGHTS / f"{name}.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), stored.values(), strict=True)))  # named otherwise
    outputs = utils.infer(nn.Sequential(utils.Normalize(*normal), network), full(task).val.images)
    scores = utils.reference_means(outputs, full(task).val.labels)
    assert scores["reference_mean"] == pytest.approx(published, abs=0.006)
