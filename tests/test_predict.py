"""Digits found in pictures of all kinds, the command, and the weights that come with the project."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn

import data
import models
import predict
import training
import utils
from data import DataError
from data.files import load_tensors, save_tensors

mpl.use("Agg")  # no screen

HOME = Path(__file__).resolve().parent.parent
TASKS = {"loc": "localization", "det": "detection"}
OWN = {"loc": models.CompactNet, "det": models.CompactNet2}
RAW_MNIST = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
MNIST_IS_HERE = all((data.FOLDER / "MNIST" / "raw" / name).is_file() for name in RAW_MNIST)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def silence(text):
    pass


def write_weights(task, folder):
    """A file as training writes it, of a network with new weights."""
    settings = replace(training.OWN, epochs=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = training.assemble(OWN[task], settings)
    save_tensors(training.best_file(folder, 1), {"epoch": 1, "model": network.state_dict()})
    history = {"seconds": [1.0], "train_mean": [0.5], "val_mean": [0.25], "val_iou": [0.125]}
    run = training.Run(OWN[task], task, folder, settings, 10, history, "trained")
    path = folder / f"{TASKS[task]}.pt"
    training.save_weights(run, SimpleNamespace(source="digits"), utils.Normalizer(0.4, 0.2), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {task: write_weights(task, folder) for task in TASKS}


@pytest.fixture(scope="module")
def picture():
    """(48, 60) uint8."""
    return np.random.default_rng(0).integers(0, 256, (48, 60), dtype=np.uint8)


class Bright(nn.Module):
    """Finds the one bright rectangle of a picture, so that where a picture went can be followed."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pictures):
        rows, columns = (pictures[0, 0] > 0.7).nonzero().unbind(1)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        box = [(left + right) / 120, (top + bottom) / 96, (right - left) / 60, (bottom - top) / 48]
        return torch.tensor([[9.0, *box, *(9.0 * (torch.arange(10) == 3))]])


class Fixed(Bright):
    """Says the same of every picture."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.tensor([outputs])

    def forward(self, pictures):
        return self.outputs


def trained(network, task="loc"):
    return predict.Trained("none", network, task, utils.Normalizer(0.0, 1.0), "digits", 1, {}, "none.pt")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_file_of_weights_gives_back_the_network_with_all_that_using_it_takes(files, task, picture):
    found = predict.load_network(files[task])
    assert (found.name, found.task, found.source, found.epoch) == (OWN[task].__name__, task, "digits", 1)
    assert found.normal == utils.Normalizer(0.4, 0.2)
    assert found.validation == {"mean": 0.25, "iou": 0.125}
    assert not found.network.training
    outputs = utils.predict(found.network, torch.from_numpy(picture)[None, None], found.normal)
    expected = utils.decode(outputs, task, 0.0, predict.OVERLAP)[0]
    digits = predict.find_digits(picture, files[task], threshold=0.0)
    assert digits
    assert torch.allclose(torch.tensor([digit.box for digit in digits]), expected["boxes"], atol=1e-4)
    assert [digit.category for digit in digits] == expected["labels"].tolist()
    assert [digit.score for digit in digits] == sorted(expected["scores"].tolist(), reverse=True)


def test_weights_are_named_by_task_by_file_or_given(files, picture, monkeypatch):
    monkeypatch.setattr(predict, "WEIGHTS", files["loc"].parent)
    for task, name in TASKS.items():
        expected = predict.find_digits(picture, predict.load_network(files[task]), 0.0)
        assert predict.find_digits(picture, name, 0.0) == expected
        assert predict.find_digits(picture, str(files[task]), 0.0) == expected
    assert len(predict.find_digits(picture, threshold=0.0)) == 1  # localization, if nothing is said


def first(stored, change):
    """Change the first of the weights."""
    name = next(iter(stored["weights"]))
    stored["weights"][name] = change(stored["weights"][name])


SPOILT = {
    "no dict": (lambda stored: [stored], "expected a dict"),
    "no settings": (lambda stored: stored.pop("settings") and None, "entry 'settings' is missing"),
    "no normalization": (lambda stored: stored.pop("normalization") and None, "entry 'normalization' is missing"),
    "epoch a text": (lambda stored: stored.update(epoch="1"), "epoch: expected int, found str"),
    "weights a list": (lambda stored: stored.update(weights=[]), "weights: expected dict, found list"),
    "unknown task": (lambda stored: stored.update(task="both"), "task: expected one of loc, det, found 'both'"),
    "unknown network": (lambda stored: stored.update(network="os.system"), "network: expected one of .*'os.system'"),
    "network of the other task": (lambda stored: stored.update(network="CompactNet2"), "network: expected one of"),
    "unknown setting": (lambda stored: stored["settings"].update(colour=1), "settings: .*colour"),
    "impossible setting": (lambda stored: stored["settings"].update(epochs=0), "settings: epochs"),
    "std 0": (lambda stored: stored["normalization"].update(std=0.0), "std: expected a number above 0, found 0"),
    "mean NaN": (lambda stored: stored["normalization"].update(mean=float("nan")), "mean: expected a finite float"),
    "no std": (lambda stored: stored["normalization"].pop("std") and None, "expected mean and std, found mean"),
    "other shape": (lambda stored: first(stored, lambda w: w[:1]), "expected torch.float32 of shape .*found"),
    "other type": (lambda stored: first(stored, lambda w: w.double()), "found torch.float64"),
    "no tensor": (lambda stored: first(stored, lambda w: 1.0), "expected a dense tensor"),
    "sparse": (lambda stored: first(stored, lambda w: w.to_sparse()), "not a plain one"),
    "NaN": (lambda stored: first(stored, lambda w: w * float("nan")), "holds NaN or infinity"),
    "infinite": (lambda stored: first(stored, lambda w: w + float("inf")), "holds NaN or infinity"),
    "one missing": (lambda stored: stored["weights"].popitem() and None, "weights: .* is missing"),
    "one too many": (lambda stored: stored["weights"].update(more=torch.ones(1)), "has none of the name 'more'"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_weights_are_refused_with_the_reason(files, tmp_path, kind):
    spoil, reason = SPOILT[kind]
    stored = load_tensors(files["loc"])
    path = tmp_path / "spoilt.pt"
    save_tensors(path, spoil(stored) or stored)
    with pytest.raises(DataError, match=rf"spoilt\.pt: .*{reason}"):
        predict.load_network(path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_missing_damaged_and_hostile_files_are_refused(files, tmp_path):
    with pytest.raises(DataError, match=r"none\.pt: no such file"):
        predict.load_network(tmp_path / "none.pt")
    content = files["loc"].read_bytes()
    for name, part in (("short.pt", content[:-1000]), ("empty.pt", b""), ("text.pt", b"weights")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(DataError, match=rf"{name}: damaged"):
            predict.load_network(tmp_path / name)
    torch.save({**load_tensors(files["loc"]), "source": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pt")
    with pytest.raises(DataError, match=r"hostile\.pt: refused"):
        predict.load_network(tmp_path / "hostile.pt")
    assert not (tmp_path / "ran").exists()


def test_a_digit_on_the_border_of_two_cells_is_found_once(picture):
    outputs = torch.zeros(6, 2, 3)
    outputs[0] = -9.0
    outputs[:, 0, 1] = torch.tensor([3.0, 0.5, 1.0, 0.6, 0.8, 9.0])  # its centre on the lower edge of the upper cell
    outputs[:, 1, 1] = torch.tensor([6.0, 0.5, 0.0, 0.6, 0.8, 9.0])  # and on the upper edge of the lower one
    (digit,) = predict.find_digits(picture, trained(Fixed(outputs.tolist()), "det"))
    assert digit.box == pytest.approx((24, 14.4, 36, 33.6), abs=1e-3)
    assert digit.score == pytest.approx(torch.tensor(6.0).sigmoid().item(), abs=1e-3)
    outputs[5, 0, 1] = -9.0  # a zero and a one at one place are two answers
    assert len(predict.find_digits(picture, trained(Fixed(outputs.tolist()), "det"))) == 2


def test_outputs_that_are_not_finite_are_no_answer(picture):
    network = Fixed([float("nan")] * 15)
    with pytest.raises(DataError, match=r"none\.pt: .*not finite"):
        predict.find_digits(picture, trained(network))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_in_every_form(picture, tmp_path):
    expected = torch.from_numpy(picture).float()[None] / 255
    Image.fromarray(picture).save(tmp_path / "gray.png")
    Image.fromarray(picture).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(picture.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    forms = [
        picture,
        picture[None],
        picture[..., None],
        np.asfortranarray(picture),
        picture[:, ::-1][:, ::-1],
        picture / 255,
        (picture / 255).astype(">f4"),
        torch.from_numpy(picture),
        torch.from_numpy(picture)[None].float().div(255).requires_grad_(),
        Image.fromarray(picture),
        Image.fromarray((picture / 255).astype(np.float32)),
        Image.fromarray(picture).convert("RGBA"),
        Image.fromarray(picture).convert("P"),
        tmp_path / "gray.png",
        str(tmp_path / "rgb.png"),
        tmp_path / "deep.png",
    ]
    said = []
    for form in forms:
        found = predict.read_picture(form, said.append)
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert said == []


def test_halves_and_bits_are_read():
    stripes = np.arange(2880).reshape(48, 60) % 2
    for form in (stripes.astype(bool), stripes.astype(np.float16), torch.from_numpy(stripes).bfloat16()):
        assert torch.equal(predict.read_picture(form), torch.from_numpy(stripes).float()[None])
    bits = Image.fromarray((stripes * 255).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    assert torch.equal(predict.read_picture(bits), torch.from_numpy(stripes).float()[None])


def test_a_picture_given_is_left_as_it_was(picture):
    given, copy = torch.from_numpy(picture / 255).float(), torch.from_numpy(picture / 255).float()
    predict.find_digits(given, trained(Fixed([0.0] * 15)))
    assert torch.equal(given, copy)


def test_what_is_done_to_a_picture_is_said(picture, tmp_path):
    said = []
    colour = np.stack((picture, picture, picture // 2), -1)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    found = predict.read_picture(Image.fromarray(colour), said.append)
    assert torch.allclose(found[0], torch.from_numpy(expected.copy()) / 255)
    assert said == ["picture: in colour, converted to grayscale"]
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    said.clear()
    found = predict.read_picture(tmp_path / "moving.gif", said.append)
    assert torch.allclose(found[0], torch.from_numpy(picture) / 255)
    assert said == [f"{tmp_path / 'moving.gif'}: holds 2 pictures, the first is taken"]


def test_a_file_is_turned_as_its_exif_orientation_asks(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    found = predict.read_picture(tmp_path / "turned.png")
    assert torch.equal(found[0], torch.from_numpy(np.rot90(picture, -1).copy()) / 255)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([[0.5]], "expected a file, a PIL image, an array or a tensor, found list"),
        (None, "found NoneType"),
        (np.zeros((0, 60)), r"empty, its shape is \(0, 60\)"),
        (Image.new("L", (0, 0)), "empty"),
        (np.zeros(60), r"expected one channel: .*found shape \(60,\)"),
        (np.zeros((48, 60, 3)), r"found shape \(48, 60, 3\)"),
        (np.zeros((1, 1, 48, 60)), r"found shape \(1, 1, 48, 60\)"),
        (torch.zeros(2, 48, 60), r"found shape \(2, 48, 60\)"),
        (np.full((48, 60), np.nan), "NaN or infinite"),
        (torch.full((48, 60), torch.inf), "NaN or infinite"),
        (np.full((48, 60), 255.0), r"outside \[0, 1\], its range is \[255, 255\]"),
        (np.full((48, 60), -0.1), r"outside \[0, 1\]"),
        (np.zeros((48, 60), dtype=np.int64), r"expected uint8, or floats in \[0, 1\], found int64"),
        (np.zeros((48, 60), dtype=complex), "found complex128"),
        (Image.new("RGBA", (60, 48)), "partly transparent"),
        (Image.new("I", (60, 48)), "expected 8 or 16 bits per pixel"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(DataError, match=f"^picture: .*{reason}"):
        predict.read_picture(wrong)


def test_files_that_are_no_pictures_are_refused(picture, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(picture).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:1000])
    for name, reason in (
        ("none.png", "no such file"),
        ("", "is a directory"),
        ("text.png", "not a picture"),
        ("empty.png", "not a picture"),
        ("short.png", "damaged or truncated"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            predict.read_picture(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(picture, threshold):
    with pytest.raises(ValueError, match=r"threshold: expected a number in \[0, 1\]"):
        predict.find_digits(picture, trained(Bright()), threshold)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (48, 60, None),
        (28, 28, "28x28 pixels (height x width), padded to 48x60"),
        (48, 30, "48x30 pixels (height x width), padded to 48x60"),
        (96, 120, "96x120 pixels (height x width), scaled to 48x60"),
        (300, 100, "300x100 pixels (height x width), scaled to 48x16 and padded to 48x60"),
        (100, 1000, "100x1000 pixels (height x width), scaled to 6x60 and padded to 48x60"),
    ],
)
def test_boxes_are_in_the_pixels_of_the_picture_given(height, width, said):
    top, left, bottom, right = height // 4, width // 2, height // 4 + height // 3, width // 2 + width // 3
    given = np.full((height, width), 0.3)
    given[top:bottom, left:right] = 1.0
    told = []
    (digit,) = predict.find_digits(given, trained(Bright()), say=told.append)
    pixel = max(1, height / 48, width / 60)  # of the network's picture, in the picture given
    tolerance = 1e-3 if pixel == 1 else pixel
    assert digit.box == pytest.approx((left, top, right, bottom), abs=tolerance)
    assert digit.category == 3
    assert digit.score == pytest.approx(1, abs=0.01)
    assert told == ([] if said is None else [f"picture: {said}"])


def test_the_frame_is_the_pictures_median_and_the_picture_is_not_distorted():
    given = torch.full((1, 20, 30), 0.25)
    given[0, 5:9, 10:20] = 0.75
    fitted = predict.fit_picture(given)
    assert (fitted.left, fitted.top, fitted.width, fitted.height) == (15, 14, 30, 20)
    expected = torch.full((1, 48, 60), 0.25)
    expected[0, 19:23, 25:35] = 0.75
    assert torch.equal(fitted.picture, expected)
    for height, width in ((1, 1), (1, 9000), (9000, 1), (47, 61), (4800, 6000)):
        fitted = predict.fit_picture(torch.rand(1, height, width))
        assert fitted.picture.shape == (1, 48, 60)
        assert 0 <= fitted.picture.min() <= fitted.picture.max() <= 1
        assert fitted.width <= 60
        assert fitted.height <= 48


def test_a_digit_in_the_frame_is_left_out_and_one_at_the_edge_is_cut_to_the_picture():
    given = np.full((48, 20), 0.3)  # 20 columns of frame on either side
    beside = trained(Fixed([9.0, 10 / 60, 0.5, 0.2, 0.5, *[0.0] * 10]))
    assert predict.find_digits(given, beside, say=silence) == []
    across = trained(Fixed([9.0, 22 / 60, 0.5, 0.2, 0.5, *[0.0] * 10]))
    (digit,) = predict.find_digits(given, across, say=silence)
    assert digit.box == pytest.approx((0, 12, 8, 36), abs=1e-3)


def test_drawn_boxes_are_where_the_digits_are():
    digits = [predict.Digit((10.0, 20.0, 60.0, 90.0), 1, 0.9), predict.Digit((200.0, 5.0, 290.0, 95.0), 0, 0.8)]
    figure = predict.draw_digits(np.zeros((100, 300)), digits)
    (axes,) = figure.axes
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    corners = [
        (*patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height()) for patch in patches
    ]
    assert corners == [digit.box for digit in digits]
    assert {patch.get_edgecolor() for patch in patches} == {to_rgba(utils.PREDICTED)}
    assert [text.get_text() for text in axes.texts] == ["1  0.90", "0  0.80"]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 300), (100, 0))
    assert predict.draw_digits(np.zeros((10, 10)), []).axes[0].get_title() == "no digit"


# --- command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(picture, tmp_path):
    path = tmp_path / "seven.png"
    Image.fromarray(picture).save(path)
    return path


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) >= 100


def test_the_command_prints_a_line_per_digit_and_draws_them(files, image, capsys):
    assert predict.main([str(image), "--weights", str(files["det"]), "--threshold", "0"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    digits = predict.find_digits(image, files["det"], 0.0)
    assert lines
    for line, digit in zip(lines, digits, strict=True):
        box = " ".join(f"{value:.1f}" for value in digit.box)
        assert line == f"{image}: class {digit.category}, score {digit.score:.3f}, box {box}"
    drawing = image.with_name("seven_found.png")
    assert printed.err == f"{image}: drawn in {drawing}\n"
    assert is_picture(drawing)


def test_the_command_says_where_there_is_no_digit(files, image, tmp_path, capsys):
    output = tmp_path / "new" / "drawn.png"
    options = ["--weights", str(files["loc"]), "--threshold", "1", "--output", str(output)]
    assert predict.main([str(image), *options]) == 0
    assert capsys.readouterr().out == f"{image}: no digit\n"
    assert is_picture(output)


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(files, image, tmp_path, capsys):
    assert predict.main([str(tmp_path / "none.png"), str(image), "--weights", str(files["loc"])]) == 2
    printed = capsys.readouterr()
    none = tmp_path / "none.png"
    assert printed.err.splitlines()[0] == f"predict.py: {none}: no such file or directory"
    assert printed.out.startswith(f"{image}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seven.png", "seven_found.png"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--threshold", "2"], r"--threshold: expected a number in \[0, 1\], found 2.0"),
        (["--threshold", "nan"], r"--threshold: expected a number in \[0, 1\], found nan"),
        (["--task", "detection"], "localization.pt: holds a network for another task than detection"),
        (["--weights", "none.pt"], "none.pt: no such file"),
        (["--output", "drawn.jpg"], r"--output: expected a name that ends in \.png"),
        (["--output", "seven.png"], "would take the place of a picture"),
        (["seven.jpg"], "would take the place of a picture, or of another's drawing"),
        (["seven_found.png"], "would take the place of a picture"),
        (["eight.png", "--output", "drawn.png"], "--output names one drawing, but there are 2 pictures"),
    ],
)
def test_wrong_options_are_refused_in_one_line(files, image, options, reason, capsys, monkeypatch):
    monkeypatch.chdir(image.parent)
    content = image.read_bytes()
    assert predict.main(["seven.png", "--weights", str(files["loc"]), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("predict.py: ")
    assert re.search(reason, line)
    assert [path.name for path in image.parent.iterdir()] == ["seven.png"]
    assert image.read_bytes() == content


def test_a_drawing_is_written_whole_or_not_at_all(files, image, capsys, monkeypatch):
    drawing = image.with_name("seven_found.png")
    drawing.write_bytes(b"old")

    def broken(figure, file, **options):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(mpl.figure.Figure, "savefig", broken)
    assert predict.main([str(image), "--weights", str(files["loc"])]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"predict.py: {drawing}: cannot be written, no space left\n"
    assert printed.out == ""
    assert drawing.read_bytes() == b"old"
    assert len(list(image.parent.iterdir())) == 2


def test_the_command_runs_from_any_folder(image):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, HOME / "predict.py", "seven.png", "--weights", "none.pt"],
        cwd=image.parent, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "predict.py: none.pt: no such file\n")


def test_nothing_imports_predict():
    for file in [*HOME.glob("*.py"), *HOME.glob("data/*.py"), *HOME.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert "predict" not in names, file.name


# --- the published weights --------------------------------------------------------------------------------------------


def published(task):
    """The results of a task and the weights that they are of; skips where there are none, with the reason."""
    results = json.loads((HOME / "figures" / "results.json").read_text()).get(task)
    if results is None:
        pytest.skip(f"figures/results.json holds nothing of {TASKS[task]} yet")
    if not training.PROFILES[results["profile"]].published:
        pytest.skip(f"profile {results['profile']} is not published")
    path = predict.WEIGHTS / f"{TASKS[task]}.pt"
    if not path.is_file():
        pytest.skip(f"weights/{path.name} is not there")
    found = predict.load_network(path)
    if found.name != results["selected"]:
        pytest.skip(f"weights/{path.name} holds {found.name}, but the results are of {results['selected']}")
    return results, found, path


@pytest.mark.parametrize("task", TASKS)
def test_published_weights_are_those_of_the_published_run(task):
    results, found, path = published(task)
    entry = results["networks"][found.name]
    assert path.stat().st_size <= 6_000_000
    assert found.task == task
    assert found.source == results["source"]
    assert found.normal == utils.Normalizer(**results["normalization"])
    assert found.epoch == entry["best_epoch"]
    assert found.validation == pytest.approx(entry["val"], abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_published_weights_give_the_published_test_figures(task, tmp_path):
    results, found, _ = published(task)
    if results["source"] != "mnist":
        pytest.skip(f"the published figures are of the source {results['source']}, not of MNIST")
    if not MNIST_IS_HERE:
        pytest.skip("MNIST's raw files are not in data/MNIST/raw")
    (tmp_path / "MNIST").symlink_to(data.FOLDER / "MNIST")
    # Test pictures are the same however few there are for training, and making those takes most of the time.
    test = data.load(task, "mnist", (1, 1, results["pictures"]["test"]), tmp_path, silence).test
    outputs = utils.predict(found.network, test.pictures, found.normal)
    scores = utils.score(outputs, test.labels, task)
    if task == "det":
        scores |= utils.mean_average_precision(outputs, test.labels, task).scores
    assert scores == pytest.approx(results["test"], abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_test_pictures_do_not_depend_on_how_many_there_are_for_training(task, tmp_path):
    few, more = (data.load(task, "digits", (size, size, 20), tmp_path, silence).test for size in (1, 9))
    assert torch.equal(few.pictures, more.pictures)
    assert torch.equal(few.labels, more.labels)
