"""Digits found in pictures of all kinds, the command, and the weights that come with the project."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import det_outputs, loc_row
from helpers import fit
from matplotlib.colors import to_rgba
from PIL import Image
from torch import nn

import data
import models
import predict
import training
import utils
from data import DataError, sources
from training.weights import Trained

HOME = Path(__file__).resolve().parent.parent
OWN = {"loc": models.CompactNet, "det": models.CompactNet2}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def weights(sets, one_core, tmp_path_factory):
    """A folder with either task's weights as training leaves them, and with files that are none."""
    folder = tmp_path_factory.mktemp("weights")
    for task, name in training.NAMES.items():
        run = fit(sets, folder / "runs", task, replace(training.OWN, epochs=1), OWN[task])
        training.save_weights(run.weights, folder / f"{name}.pt")
    (folder / "text.pt").write_text("weights", encoding="utf-8")
    (folder / "short.pt").write_bytes((folder / "detection.pt").read_bytes()[:-1000])
    stored = torch.load(folder / "detection.pt")
    torch.save(stored["weights"], folder / "bare.pt")
    torch.save({**stored, "network": "Net"}, folder / "unknown.pt")
    torch.save({**stored, "source": Hostile()}, folder / "hostile.pt")
    return folder


@pytest.fixture(scope="module")
def picture():  # (48, 60) uint8
    return np.random.default_rng(0).integers(0, 256, (48, 60), dtype=np.uint8)


@pytest.fixture
def image(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


class Says(nn.Linear):
    """Gives the answer that a function has for the pictures, or the same to all."""

    def forward(self, pictures):
        return self.answer(pictures) if callable(self.answer) else self.answer


def trained(answer):
    network = Says(1, 1)
    network.answer = answer
    return Trained("none", network, "loc", utils.Normalizer(0.0, 1.0), "digits", 1, {}, Path("none.pt"))


def bright(pictures):
    """Finds the one bright rectangle of a picture, so that where a picture went can be followed."""
    rows, columns = (pictures[0, 0] > 0.7).nonzero().unbind(1)
    top, bottom, left, right = rows.min() / 48, (rows.max() + 1) / 48, columns.min() / 60, (columns.max() + 1) / 60
    return loc_row(9.0, [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], c3=9.0)[None]


@pytest.mark.parametrize("task", OWN)
def test_the_network_is_named_by_its_task_or_file_or_given(task, weights, sets, picture, monkeypatch):
    path = weights / f"{training.NAMES[task]}.pt"
    given = training.load_weights(path)
    outputs = utils.infer(given.network, torch.from_numpy(picture)[None, None], sets[task][1])
    (expected,) = utils.decode(outputs, 0.0, predict.OVERLAP)
    digits = predict.find_digits(picture, given, 0.0)
    assert digits
    assert torch.allclose(torch.tensor([digit.box for digit in digits]), expected["boxes"], atol=1e-4)
    assert [digit.category for digit in digits] == expected["labels"].tolist()
    assert [digit.score for digit in digits] == sorted(expected["scores"].tolist(), reverse=True)
    monkeypatch.setattr(predict, "WEIGHTS", weights)
    for named in (training.NAMES[task], path, str(path)):
        assert predict.find_digits(picture, named, 0.0) == digits
    assert (predict.find_digits(picture, threshold=0.0) == digits) == (task == "loc")  # the default


def test_a_digit_on_the_border_of_two_cells_is_found_once(picture):
    upper, lower = (3.0, 0.5, 1.0, 0.6, 0.8, 9.0), (6.0, 0.5, 0.0, 0.6, 0.8, 9.0)  # one place, seen from either cell
    (digit,) = predict.find_digits(picture, trained(det_outputs({(0, 1): upper, (1, 1): lower})))
    assert digit.box == pytest.approx((24, 14.4, 36, 33.6), abs=1e-3)
    assert digit.score == pytest.approx(torch.tensor(6.0).sigmoid().item(), abs=1e-3)
    zero = (*upper[:5], -9.0)  # a zero and a one at one place are two answers
    assert len(predict.find_digits(picture, trained(det_outputs({(0, 1): zero, (1, 1): lower})))) == 2


def test_there_is_no_answer_beyond_the_numbers(picture):
    with pytest.raises(DataError, match=r"none\.pt: .*not finite"):
        predict.find_digits(picture, trained(torch.full((1, 15), torch.nan)))
    with pytest.raises(ValueError, match=r"threshold: expected a number in \[0, 1\]"):
        predict.find_digits(picture, trained(torch.zeros(1, 15)), float("nan"))


def test_a_picture_is_the_same_in_every_form_and_left_as_it_was(picture, tmp_path):
    before, stripes = picture.copy(), np.arange(2880).reshape(48, 60) % 2 == 1
    floats = torch.from_numpy(picture).float() / 255
    Image.fromarray(picture).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(picture.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    forms = [
        picture, picture[None], picture[..., None], np.asfortranarray(picture), picture[:, ::-1][:, ::-1],
        picture / 255, (picture / 255).astype(">f4"), torch.from_numpy(picture), floats, floats[None].requires_grad_(),
        Image.fromarray(picture), Image.fromarray((picture / 255).astype(np.float32)),
        Image.fromarray(picture).convert("RGBA"), Image.fromarray(picture).convert("P"),
        tmp_path / "deep.png", str(tmp_path / "rgb.png"),
    ]  # fmt: skip
    bits = [stripes, stripes.astype(np.float16), torch.from_numpy(stripes).bfloat16(), Image.fromarray(stripes)]
    for expected, given in ((before / 255, forms), (stripes, bits)):
        for form in given:
            found = predict.read_picture(form, pytest.fail)  # there is nothing to say
            assert found.dtype == torch.float32
            assert torch.allclose(found, torch.from_numpy(expected).float()[None], rtol=0, atol=1e-6)
            found.zero_()  # which is a copy, therefore
    assert np.array_equal(picture, before)
    assert np.array_equal(floats, torch.from_numpy(before).float() / 255)


def test_what_is_done_to_a_picture_is_said(picture, tmp_path):
    said, moving, turned, exif = [], tmp_path / "moving.gif", tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # the orientation: to be shown turned clockwise
    colour = Image.fromarray(np.stack((picture, picture, picture // 2), -1))
    Image.fromarray(picture).save(moving, save_all=True, append_images=[Image.fromarray(255 - picture)])
    Image.fromarray(picture).save(turned, exif=exif)
    for given, expected in ((colour, np.asarray(colour.convert("L"))), (moving, picture), (turned, picture.T[:, ::-1])):
        found = predict.read_picture(given, said.append)
        assert torch.allclose(found[0], torch.from_numpy(expected / 255).float())
    assert said == ["picture: in colour, converted to grayscale", f"{moving}: holds 2 pictures, the first is taken"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([[0.5]], "expected a file, a PIL image, an array or a tensor, found list"),
        (np.zeros((0, 60)), r"empty, its shape is \(0, 60\)"),
        (torch.zeros(2, 48, 60), r"expected one channel: .*found shape \(2, 48, 60\)"),
        (np.full((48, 60), np.nan), "has pixels that are NaN or infinite"),
        (np.full((48, 60), 255.0), r"has pixels outside \[0, 1\], its range is \[255, 255\]"),
        (np.zeros((48, 60), dtype=np.int64), r"expected uint8, or floats in \[0, 1\], found int64"),
        (Image.new("RGBA", (60, 48)), "partly transparent"),
        (Image.new("I", (60, 48)), "expected 8 or 16 bits per pixel"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(DataError, match=f"^picture: {reason}"):
        predict.read_picture(wrong)


def test_files_that_are_no_pictures_are_refused_with_the_reason(image):
    image.with_name("text.png").write_text("no picture", encoding="utf-8")
    image.with_name("short.png").write_bytes(image.read_bytes()[:1000])
    reasons = {"none.png": "no such file", "": "is a directory", "text.png": "not a picture", "short.png": "damaged"}
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"^{re.escape(str(image.parent / name))}: {reason}"):
            predict.read_picture(image.parent / name)


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (48, 60, []),
        (28, 28, ["padded to 48x60"]),
        (96, 120, ["scaled to 48x60"]),
        (100, 1000, ["scaled to 6x60 and padded to 48x60"]),
    ],
)
def test_boxes_are_in_the_pixels_of_the_picture_given(height, width, said):
    top, left, bottom, right = height // 4, width // 2, height // 4 + height // 3, width // 2 + width // 3
    given, told = np.full((height, width), 0.3), []
    given[top:bottom, left:right] = 1.0
    (digit,) = predict.find_digits(given, trained(bright), log=told.append)
    pixel = max(1, height / 48, width / 60)  # of the network's picture, in the picture given
    assert digit.box == pytest.approx((left, top, right, bottom), abs=1e-3 if pixel == 1 else pixel)
    assert (digit.category, digit.score) == (3, pytest.approx(1, abs=0.01))
    assert told == [f"picture: {height}x{width} pixels (height x width), {text}" for text in said]


def test_a_small_picture_lies_in_the_middle_of_its_median():
    given, expected = torch.full((1, 20, 30), 0.25), torch.full((1, 48, 60), 0.25)
    given[0, 5:9, 10:20] = expected[0, 19:23, 25:35] = 0.75
    assert torch.equal(predict.fit_picture(given).picture, expected)
    for height, width in ((1, 1), (1, 9000), (9000, 1), (47, 61)):
        assert predict.fit_picture(torch.rand(1, height, width)).picture.shape == (1, 48, 60)


def test_a_digit_in_the_frame_is_left_out_and_one_at_the_edge_is_cut_to_the_picture():
    given = np.full((48, 20), 0.3)  # 20 columns of frame on either side
    beside, across = (trained(loc_row(9.0, [x / 60, 0.5, 0.2, 0.5])[None]) for x in (10, 22))
    assert predict.find_digits(given, beside) == []
    assert [digit.box for digit in predict.find_digits(given, across)] == [pytest.approx((0, 12, 8, 36), abs=1e-3)]


def test_drawn_boxes_are_where_the_digits_are():
    digits = [predict.Digit((10.0, 20.0, 60.0, 90.0), 1, 0.9), predict.Digit((200.0, 5.0, 290.0, 95.0), 0, 0.8)]
    (axes,) = predict.draw_digits(np.zeros((100, 300)), digits).axes
    assert [(*patch.get_bbox().min, *patch.get_bbox().max) for patch in axes.patches] == [each.box for each in digits]
    assert {patch.get_edgecolor() for patch in axes.patches} == {to_rgba(utils.PREDICTED)}
    assert [text.get_text() for text in axes.texts] == ["1  0.90", "0  0.80"]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 300), (100, 0))
    assert predict.draw_digits(np.zeros((10, 10)), []).axes[0].get_title() == "no digit"


def test_the_command_prints_a_line_per_digit_and_draws_them(weights, image, capsys):
    """A picture that cannot be read does not stop the others."""
    none, drawing, path = image.with_name("none.png"), image.with_name("seven_found.png"), weights / "detection.pt"
    assert predict.main([str(none), str(image), "--weights", str(path), "--threshold", "0"]) == 2
    printed, digits = capsys.readouterr(), predict.find_digits(image, path, 0.0)
    for line, (box, category, score) in zip(printed.out.splitlines(), digits, strict=True):
        corners = " ".join(f"{value:.1f}" for value in box)
        assert line == f"{image}: class {category}, score {score:.3f}, box {corners}"
    assert printed.err == f"predict.py: {none}: no such file or directory\n{image}: drawn in {drawing}\n"
    assert {each.name for each in image.parent.iterdir()} == {"seven.png", "seven_found.png"}


def test_the_command_says_where_there_is_no_digit(weights, image, capsys):
    output, path = image.parent / "new" / "drawn.png", weights / "localization.pt"
    assert predict.main([str(image), f"--weights={path}", "--threshold=1", f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"{image}: no digit\n"
    assert predict.read_picture(output).shape[1] >= 100


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--threshold nan", r"--threshold: expected a number in \[0, 1\], found nan"),
        ("--task detection", "localization.pt: holds a network for another task than detection"),
        ("--output drawn.jpg", r"--output: expected a name that ends in \.png"),
        ("--output seven.png", "seven.png: the drawing would take the place of a picture"),
        ("seven.jpg", "would take the place of a picture, or of another's drawing"),
        ("eight.png --output drawn.png", "--output names one drawing, but there are 2 pictures"),
        ("--weights none.pt", "none.pt: no such file"),
        ("--weights {}/text.pt", "text.pt: damaged or truncated, or not a file that torch.save wrote"),
        ("--weights {}/short.pt", "short.pt: damaged or truncated"),
        ("--weights {}/bare.pt", "bare.pt: expected what save_weights writes"),
        ("--weights {}/unknown.pt", "unknown.pt: expected .*found 'Net'"),
        ("--weights {}/hostile.pt", "hostile.pt: refused"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(options, reason, weights, image, capsys, monkeypatch):
    monkeypatch.chdir(image.parent)
    content = image.read_bytes()
    asked = ["seven.png", "--weights", str(weights / "localization.pt"), *options.format(weights).split()]
    assert predict.main(asked) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"predict\.py: .*{reason}.*\n", printed.err)
    assert not printed.out
    assert {path.name: path.read_bytes() for path in image.parent.iterdir()} == {"seven.png": content}


def test_a_drawing_that_cannot_be_written_is_named(weights, image, capsys):
    drawing = image.with_name("seven_found.png")
    drawing.mkdir()
    assert predict.main([str(image), "--weights", str(weights / "localization.pt")]) == 2
    assert capsys.readouterr() == ("", f"predict.py: {drawing}: cannot be written, Is a directory\n")


def test_the_command_runs_from_any_folder(image):
    command = [sys.executable, HOME / "predict.py", "seven.png", "--weights", "none.pt"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, cwd=image.parent, env=environment, capture_output=True, encoding="utf-8")
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "predict.py: none.pt: no such file\n")


@pytest.mark.parametrize("task", OWN)
def test_published_weights_are_those_of_the_published_run(task, tmp_path):
    results = json.loads((HOME / "figures" / "results.json").read_text(encoding="utf-8"))[task]
    path = predict.WEIGHTS / f"{training.NAMES[task]}.pt"
    found = training.load_weights(path)
    entry = results["networks"][found.name]
    assert (found.task, found.source, found.epoch) == (task, results["source"], entry["best_epoch"])
    assert found.normal == utils.Normalizer(**results["normalization"])
    assert found.validation == pytest.approx(entry["val"], abs=1e-6)
    assert path.stat().st_size <= 6_000_000
    if found.source != "mnist" or not all(each.is_file() for each in sources.mnist_files(data.FOLDER)):
        pytest.skip("the pictures that the weights were trained for are not there")
    # Fewer pictures than the published figures are of: `make check-published` has those to the last digit printed.
    (tmp_path / "MNIST").symlink_to(data.FOLDER / "MNIST")
    test = data.load(task, "mnist", (1, 1, 500), tmp_path, lambda text: None).test
    assert utils.evaluate(found.network, test, found.normal)["mean"] == pytest.approx(results["test"]["mean"], abs=0.02)
