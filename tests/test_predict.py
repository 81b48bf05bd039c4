"""Digits found in images of all kinds, the command, and the weights that come with the project."""

import io
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import HOME, RESULTS, det_outputs, loc_row
from matplotlib.colors import to_rgba
from PIL import Image, ImageDraw, ImageFilter
from torch import nn

import models
import predict
import training
import utils
from data import DataError, perturb
from training.runs import Trained

OWN = {"loc": models.CompactNet, "det": models.CompactNet2}


@pytest.fixture(scope="module")
def noise():  # (48, 60) uint8, a background of the training images
    return perturb.make_noise(1, "loc", 1.0, np.random.default_rng(0))[0].numpy()


@pytest.fixture
def path(noise, tmp_path):
    Image.fromarray(noise).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


class Says(nn.Linear):
    """Gives the answer that a function has for the images, or the same to all."""

    def forward(self, images):
        return self.answer(images) if callable(self.answer) else self.answer


def trained(answer):
    network = Says(1, 1)
    network.answer = answer
    return Trained("none", network, "loc", "digits", 1, {}, Path("none.pt"))


def bright(images):
    """Finds the one bright rectangle of an image, so that where an image went can be followed."""
    rows, columns = (images[0, 0] > 0.99).nonzero().unbind(1)
    top, bottom, left, right = rows.min() / 48, (rows.max() + 1) / 48, columns.min() / 60, (columns.max() + 1) / 60
    return loc_row(9.0, [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], c3=9.0)[None]


def classes(digits):
    return [digit.class_id for digit in digits]


# ---------------------------------------------------------------------------------------------- the course's own kind


@pytest.mark.parametrize("task", OWN)
def test_the_network_is_named_by_its_task_or_file_or_given(task, noise):
    path = predict.WEIGHTS / f"{OWN[task].__name__}.pt"
    given = training.load_weights(path)
    (decoded,) = utils.decode(utils.infer(given.network, torch.from_numpy(noise)[None, None]), 0.0, predict.OVERLAP)
    boxes, labels, scores = (values.tolist() for values in decoded.values())
    expected = [predict.Digit(tuple(box), *rest) for box, *rest in zip(boxes, labels, scores, strict=True)]
    digits = predict.find_digits(noise, given, 0.0)
    assert sorted(digits) == sorted(expected) != []
    for named in (training.NAMES[task], path, str(path)):
        assert predict.find_digits(noise, named, 0.0) == digits
    assert (predict.find_digits(noise, threshold=0.0) == digits) == (task == "loc")  # the default


def test_a_digit_on_the_border_of_two_cells_is_found_once(noise):
    upper, lower = (3.0, 0.5, 1.0, 0.6, 0.8, 9.0), (6.0, 0.5, 0.0, 0.6, 0.8, 9.0)  # one place, seen from either cell
    (digit,) = predict.find_digits(noise, trained(det_outputs({(0, 1): upper, (1, 1): lower})))
    assert digit.box == pytest.approx((24, 14.4, 36, 33.6), abs=1e-3)
    assert digit.score == pytest.approx(torch.tensor(6.0).sigmoid().item(), abs=1e-3)
    zero = (*upper[:5], -9.0)  # a zero and a one at one place are two answers
    assert len(predict.find_digits(noise, trained(det_outputs({(0, 1): zero, (1, 1): lower})))) == 2


def test_a_network_that_answers_nan_is_named(noise):
    with pytest.raises(DataError, match=r"none\.pt: .*not finite"):
        predict.find_digits(noise, trained(torch.full((1, 15), torch.nan)))


@pytest.mark.parametrize(("factor", "height", "width", "said"), [
    (1, 48, 60, ""),
    (1, 28, 28, "padded to 48x60"),
    (2, 96, 120, "scaled to 48x60"),
    (20, 960, 1200, "scaled to 48x60"),
])  # fmt: skip
def test_boxes_are_in_the_pixels_of_the_image_given(factor, height, width, said, noise):
    """Of images of the training images' kind, of other sizes too."""
    given, told = np.kron(noise.clip(0, 230), np.ones((factor, factor), np.uint8))[:height, :width], []
    top, left, bottom, right = height // 4, width // 2, height // 4 + height // 3, width // 2 + width // 3
    given[top:bottom, left:right] = 255
    (digit,) = predict.find_digits(given, trained(bright), log=told.append)
    assert digit.box == pytest.approx((left, top, right, bottom), abs=1e-3 if factor == 1 else factor + 0.01)
    assert (digit.class_id, digit.score) == (3, pytest.approx(1, abs=0.01))
    assert told == ([f"image: {height}x{width} pixels (height x width), {said}"] if said else [])


def test_a_digit_in_the_frame_is_left_out_and_one_at_the_edge_is_cut_to_the_image(noise):
    given = noise[:, :20]  # 20 columns of frame on either side
    beside, across = (trained(loc_row(9.0, [x / 60, 0.5, 0.2, 0.5])[None]) for x in (10, 22))
    assert predict.find_digits(given, beside) == []
    assert [digit.box for digit in predict.find_digits(given, across)] == [pytest.approx((0, 12, 8, 36), abs=1e-3)]


@pytest.mark.parametrize("task", OWN)
@pytest.mark.parametrize(("factor", "offset", "said"), [
    (1, 0, None), (0.7, 0, "brightened"), (-1, 1, "a negative, inverted"),
])  # fmt: skip
def test_images_like_the_training_images_reach_the_network_as_those_are(task, factor, offset, said, sets):
    """Themselves bit for bit; dim ones and negatives as themselves."""
    shown, told = [], []
    network = trained(lambda images: (shown.append(images), torch.zeros(1, 15))[1])
    wanted = utils.as_floats(sets[task].train.images[:24])
    for given in wanted:
        predict.find_digits(given * factor + offset, network, log=told.append)
    assert len(shown) == len(wanted)
    apart = (torch.cat(shown) - wanted).abs().mean()
    assert apart <= (0.02 if said else 0)  # a brightest pixel of 0.95 becomes 1
    assert [said in text for text in told] == [True] * (len(wanted) if said else 0)


# ---------------------------------------------------------------------------------------------- reading images


def test_an_image_is_the_same_in_every_form_and_left_as_it_was(noise, tmp_path):
    before, stripes = noise.copy(), np.arange(2880).reshape(48, 60) % 2 == 1
    floats = torch.from_numpy(noise).float() / 255
    Image.fromarray(noise).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(noise.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    forms = [
        noise, noise[None], noise[..., None], np.asfortranarray(noise), noise[:, ::-1][:, ::-1],
        noise / 255, (noise / 255).astype(">f4"), torch.from_numpy(noise), floats, floats[None].requires_grad_(),
        Image.fromarray(noise), Image.fromarray((noise / 255).astype(np.float32)),
        Image.fromarray(noise).convert("RGBA"), Image.fromarray(noise).convert("P"),
        tmp_path / "deep.png", str(tmp_path / "rgb.png"), io.BytesIO((tmp_path / "rgb.png").read_bytes()),
        noise.astype(np.int64), (noise * np.uint16(257)).astype(">u2"), np.stack([noise] * 3, -1),
        torch.from_numpy(noise / 255).expand(3, 48, 60),
    ]  # fmt: skip
    masks = [stripes, stripes.astype(np.uint8), stripes.astype(np.int64), stripes.astype(np.float16)]
    masks += [torch.from_numpy(stripes).bfloat16(), Image.fromarray(stripes)]
    for expected, given in ((before / 255, forms), (stripes, masks)):
        for form in given:
            read = predict.read_image(form, pytest.fail).gray  # there is nothing to say
            assert read.dtype == torch.float32
            assert torch.allclose(read, torch.from_numpy(expected).float()[None], rtol=0, atol=1e-6)
            read.zero_()  # which is a copy, therefore
    assert np.array_equal(noise, before)
    assert np.array_equal(floats, torch.from_numpy(before).float() / 255)


def test_what_is_done_to_an_image_is_said(noise, tmp_path):
    said, moving = [], tmp_path / "moving.gif"
    colour = Image.fromarray(np.stack((noise, noise, noise // 2), -1))
    Image.fromarray(noise).save(moving, save_all=True, append_images=[Image.fromarray(255 - noise)])
    for given, expected in ((colour, np.asarray(colour.convert("L"))), (moving, noise)):
        assert torch.allclose(predict.read_image(given, said.append).gray[0], torch.from_numpy(expected / 255).float())
    assert said == ["image: in colour, converted to grayscale", f"{moving}: holds 2 images, the first is taken"]
    assert predict.read_image(stray(), pytest.fail).gray[0, 5, 5] == 1  # a stray transparent pixel, without a word


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_as_exif_asks(kind, orientation, tmp_path):
    given, exif = np.zeros((30, 50), np.uint8), Image.Exif()
    given[:10, :20] = 255
    exif[0x0112] = orientation
    Image.fromarray(given).save(tmp_path / f"turned.{kind}", exif=exif, compression="tiff_lzw")
    turned = {2: given[:, ::-1], 3: given[::-1, ::-1], 4: given[::-1], 5: given.T}
    turned |= {6: np.rot90(given, -1), 7: given[::-1, ::-1].T, 8: np.rot90(given)}
    image = predict.read_image(tmp_path / f"turned.{kind}", pytest.fail)
    expected = turned.get(orientation, given)
    assert (image.height, image.width) == expected.shape
    assert np.abs(image.gray[0].numpy() - expected / 255).mean() < 0.03  # a JPEG's edges


@pytest.mark.parametrize("tags", [  # number, type, count, value, as Pillow does not write them
    [(0x0112, 3, 1, bytes(4))], [(0x0112, 11, 1, struct.pack("<f", 6.5))], [(0x0112, 2, 4, b"six")],
    [(0x0112, 3, 1, b"\6"), (0x011A, 2, 4, b"six")],  # a quarter turn, and text for the resolution
])  # fmt: skip
def test_exif_of_an_odd_type_is_ignored(tags, noise, path):
    listed = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    Image.fromarray(noise).save(path, exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4))
    assert len(Image.open(path).getexif()) == len(tags)
    assert torch.equal(predict.read_image(path, pytest.fail).gray[0], torch.from_numpy(noise) / 255)


@pytest.mark.parametrize(("wrong", "reason"), [
    ([[0.5]], "expected a file, a PIL image, an array or a tensor, found list"),
    (np.zeros((0, 60)), r"expected .*, found shape \(0, 60\)"),
    (torch.zeros(2, 48, 60), r"expected \(H, W\), or 1, 3 or 4 channels .*found shape \(2, 48, 60\)"),
    (np.full((48, 60), np.nan), "has pixels that are NaN or infinite"),
    (np.full((48, 60), 255.0), r"expected float64 from 0 to 1, found 255 to 255"),
    (np.full((48, 60), 256), "expected int64 from 0 to 255, found 256 to 256"),
    (np.zeros((48, 60), dtype=complex), r"expected numbers from 0 to 255, or floats in \[0, 1\], found complex128"),
    (Image.new("I", (60, 48)), "expected 8 or 16 bits per pixel"),
])  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(wrong, reason):
    with pytest.raises(DataError, match=f"^image: {reason}"):
        predict.read_image(wrong)


def test_files_that_are_no_images_are_refused_with_the_reason(path):
    path.with_name("text.png").write_text("no image", encoding="utf-8")
    path.with_name("short.png").write_bytes(path.read_bytes()[:1000])
    path.with_name("phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    reasons = {"none.png": "no such file", "text.png": "not an image", "phone.heic": "not .*HEIC"}
    reasons |= {"short.png": "cannot be read, .*truncated", "": "expected a file, found a folder"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(path.with_name("pipe.png"))
        reasons |= dict.fromkeys((os.devnull, "pipe.png"), "expected a file, found .*a pipe or a device")
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"^{re.escape(str(path.parent / name))}: {reason}"):
            predict.read_image(path.parent / name)


# ---------------------------------------------------------------------------------------------- anybody's images

STROKES = {  # corners (x, y) in fractions of the digit's height
    1: [[(0.25, 0), (0.15, 1)]],
    4: [[(0.3, 0), (0.02, 0.6), (0.65, 0.6)], [(0.5, 0.25), (0.45, 1)]],
    5: [[(0.15, 0.2), (0.12, 0.45), (0.45, 0.45), (0.55, 0.7), (0.4, 0.98), (0, 0.95)], [(0.15, 0), (0.6, 0)]],
    7: [[(0, 0.02), (0.6, 0), (0.25, 1)]],
    "flag": [[(0, 0.35), (0.3, 0), (0.25, 1)]],  # a one with an upstroke
    "base": [[(0.1, 0.2), (0.3, 0), (0.3, 1)], [(0.05, 1), (0.55, 1)]],
    "bar": [[(0, 0.02), (0.6, 0), (0.25, 1)], [(0.15, 0.5), (0.6, 0.48)]],  # a crossed seven
    "cross": [[(0, 0.5), (1, 0.5)], [(0.5, 0), (0.5, 1)]],
    "E": [[(0.6, 0), (0, 0), (0, 1), (0.6, 1)], [(0, 0.5), (0.5, 0.5)]],
    "W": [[(0, 0), (0.25, 1), (0.5, 0.3), (0.75, 1), (1, 0)]],
}


def cover(shape, *digits, width=0.12):
    """Ink (H, W) in [0, 1] of digits (name, height in pixels, left, top), `width` of the height thick."""
    image = Image.new("L", shape[::-1])
    for name, high, left, top in digits:
        for stroke in STROKES[name]:
            corners = [(left + high * x, top + high * y) for x, y in stroke]
            ImageDraw.Draw(image).line(corners, fill=255, width=max(1, round(width * high)), joint="curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.5))) / 255


def as_bytes(values):
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def mixed(ink, ground, colour=0.1):
    """Ink of a colour on a ground, uint8."""
    return as_bytes(ground * (1 - ink) + colour * ink)


def paper(shape, deviation=0.02):
    """Paper in a shadow that grows to the right."""
    return np.linspace(0.9, 0.4, shape[1]) + np.random.default_rng(1).normal(0, deviation, shape)


def stray():
    """White paper, opaque but for one pixel."""
    given = np.dstack([mixed(SEVEN, 1.0)] * 3 + [np.full((200, 240), 255, np.uint8)])
    given[5, 5, 3] = 0
    return Image.fromarray(given)


def photo(given):
    stored = io.BytesIO()
    Image.fromarray(given).save(stored, "JPEG", quality=60)
    return stored


def tight(name, width):
    ink = cover((300, 300), (name, 100, 100, 100), width=width)
    rows, columns = np.nonzero(ink > 0.5)
    return mixed(ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], 1.0)


SEVEN, HERE, RULED = cover((200, 240), (7, 80, 90, 60)), (90, 60, 138, 140), np.arange(200)[:, None] % 50 // 2 == 12
OTHERS = {  # kinds of image, each with a seven unless another class is given: its box, and the image
    "black on white": (HERE, mixed(SEVEN, 1.0, 0.0)),
    "a mask": (HERE, (SEVEN > 0.5).astype(int)),
    "28x28": ((8, 4, 20, 24), mixed(cover((28, 28), (7, 20, 8, 4)), 1.0, 0.0)),
    "a photograph": ((300, 200, 420, 400), photo(mixed(cover((600, 800), (7, 200, 300, 200)), paper((600, 800))))),
    "noise": (HERE, mixed(SEVEN, paper((200, 240), 0.08))),
    "thin": ((90, 40, 168, 170), mixed(cover((200, 240), (7, 130, 90, 40), width=0.015), 0.9, 0.5)),
    "thick": (HERE, mixed(cover((200, 240), (7, 80, 90, 60), width=0.25), 1.0)),
    "at the border": ((0, 60, 48, 140), mixed(SEVEN[:, 90:], 1.0)),
    "cut out at its box": ((0, 0, 56, 84), mixed(SEVEN[58:142, 86:142], 0.9)),
    "thick, cut out at its box": ((0, 0, 70, 100), tight(4, 0.2), 4),
    "thick, 28x28": ((6, 3, 18, 25), mixed(cover((28, 28), ("flag", 19, 7, 4), width=0.2), 1.0), 1),
    "framed": ((96, 66, 144, 146), np.pad(mixed(SEVEN, 1.0, 0.3), 6)),
    "on a ruled line": (HERE, mixed(SEVEN, 0.9 - 0.4 * RULED)),
    "a shadow with an edge": (HERE, mixed(SEVEN, np.where(np.arange(240) < 110, 0.9, 0.55))),
    # As a drawing program stores it: black everywhere, and the ink is what is not transparent.
    "black ink, transparent": (HERE, Image.fromarray(as_bytes(np.dstack([0 * SEVEN] * 3 + [SEVEN])))),
    "a transparent pixel": (HERE, stray()),
    "long": ((900, 20, 936, 80), mixed(cover((100, 1500), (7, 60, 900, 20)), 1.0)),
    "large": ((900, 800, 1260, 1400), mixed(cover((1800, 2400), (7, 600, 900, 800)), paper((1800, 2400)))),
    "crossed": (HERE, mixed(cover((200, 240), ("bar", 80, 90, 60)), 1.0)),
    "an upstroke": ((90, 60, 114, 140), mixed(cover((200, 240), ("flag", 80, 90, 60)), 1.0), 1),
    "an upstroke and a base": ((94, 60, 134, 140), mixed(cover((200, 240), ("base", 80, 90, 60)), 1.0), 1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_digit_is_found_in_images_of_other_kinds(kind):
    box, given, *other = OTHERS[kind]
    (digit,) = predict.find_digits(given, log=lambda text: None)
    assert digit.class_id == (other[0] if other else 7)
    assert digit.box == pytest.approx(box, abs=0.16 * (box[3] - box[1]))


ROWS, COLUMNS = np.indices((200, 240))
NOTHING = {
    "white": np.full((48, 60), 255, np.uint8),
    "paper with a shadow": photo(as_bytes(paper((600, 800)))),
    "a shadow with an edge": as_bytes(0.9 - 0.4 * (ROWS > 0.7 * COLUMNS) + paper((200, 240)) * 0.1),
    "a frame": np.pad(np.full((200, 260), 255, np.uint8), 6),
    "a drawn rectangle": np.pad(np.pad(np.full((100, 140), 255, np.uint8), 5), 40, constant_values=255),
    "a line": as_bytes((np.arange(60) == 30) * np.ones((48, 1))),
    "two lines": as_bytes(np.minimum(np.abs(ROWS - 0.7 * COLUMNS), np.abs(ROWS + 0.8 * COLUMNS - 190)) > 2),
    "a dash": as_bytes((np.abs(ROWS - 100) > 4) | (np.abs(COLUMNS - 120) > 40)),
    "a disc": as_bytes(np.hypot(ROWS - 90, COLUMNS - 100) > 60),
    "a chessboard": as_bytes((ROWS // 17 + COLUMNS // 17) % 2),
    "squared paper": as_bytes(0.9 - 0.4 * ((ROWS % 20 < 2) | (COLUMNS % 20 < 2))),
    "white noise": as_bytes(np.random.default_rng(2).normal(0.5, 0.15, (48, 60))),
    "texture": as_bytes(0.7 + np.kron(np.random.default_rng(3).normal(0, 0.06, (50, 60)), np.ones((4, 4)))),
    "a cross and letters": mixed(cover((200, 600), ("cross", 80, 50, 60), ("E", 80, 250, 60), ("W", 80, 400, 60)), 1.0),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_is_found_where_nothing_is(kind):
    told = []
    assert predict.find_digits(NOTHING[kind], log=told.append) == []
    assert len(told) == 1  # and why


def test_digits_are_given_in_reading_order_and_what_is_not_quite_one_is_said():
    """A digit of two strokes is one digit; dirt is none."""
    ink = cover((200, 300), (4, 60, 20, 20), (7, 60, 90, 15), (5, 60, 150, 22), (1, 60, 250, 20), (7, 60, 20, 120))
    ink = np.maximum(ink, cover((200, 300), (1, 18, 200, 150)))
    told = []
    digits = predict.find_digits(mixed(ink, 1.0), log=told.append)
    assert classes(digits) == [4, 7, 5, 1, 7]
    assert digits[2].box[1] == pytest.approx(22 - 3.6, abs=2)  # with the bar of the five, which is a stroke of its own
    assert "dark on light, " in told[0]
    assert classes(predict.find_digits(mixed(ink, 1.0), "detection", log=str)) == [1]
    assert predict.find_digits(mixed(ink, 1.0), threshold=1, log=told.append) == []
    assert re.search(r"perhaps a \d, [01]\.\d\d", told[-1])


def test_a_page_that_lies_sideways_is_turned():
    names = [4, 7, 7, "bar", 4, "bar", 4, 4, 7, 7]
    ink = cover((200, 800), *[(name, 80, 20 + 150 * (i % 5), 10 + 100 * (i // 5)) for i, name in enumerate(names)])
    expected = [name if name in range(10) else 7 for name in names]
    upright = predict.find_digits(mixed(ink, 0.9), log=str)
    assert classes(upright) == expected
    for turn in (1, 3):
        told = []
        digits = predict.find_digits(np.rot90(mixed(ink, 0.9), turn), log=told.append)
        assert classes(digits) == expected
        assert f"turned by {90 * (4 - turn)} degrees counterclockwise" in told[-1]
        for digit, other in zip(digits, upright, strict=True):
            assert digit.box == pytest.approx(other.box, abs=3)


def test_a_large_image_is_shrunk_for_finding_and_drawing_alone():
    _, given = OTHERS["large"]
    (digit,) = predict.find_digits(image := Image.fromarray(given))
    assert image.size == (2400, 1800)  # what was given is not shrunk itself
    (shown,) = predict.draw_digits(predict.read_image(image), [digit]).axes
    assert shown.images[0].get_array().size <= predict.MOST_PIXELS
    left, _, right, _ = (value * shown.get_xlim()[1] / 2400 for value in digit.box)
    assert (shown.patches[0].get_x(), shown.patches[0].get_width()) == pytest.approx((left, right - left), abs=0.01)


def test_drawn_boxes_are_where_the_digits_are():
    image, digits = predict.read_image(np.zeros((100, 300))), [predict.Digit((10.0, 20.0, 60.0, 90.0), 1, 0.9)]
    digits.append(predict.Digit((200.0, 5.0, 290.0, 95.0), 0, 0.8))
    (axes,) = predict.draw_digits(image, digits).axes
    assert [(*patch.get_bbox().min, *patch.get_bbox().max) for patch in axes.patches] == [each.box for each in digits]
    assert {patch.get_edgecolor() for patch in axes.patches} == {to_rgba(utils.DRAW_PREDICTED)}
    assert [text.get_text() for text in axes.texts] == ["1  0.90", "0  0.80"]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 300), (100, 0))
    assert predict.draw_digits(image, []).axes[0].get_title() == "no digit"


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_line_per_digit_and_draws_them(path, capsys):
    """An image that cannot be read does not stop the others, and what an earlier call drew is skipped."""
    none, drawing = path.with_name("none.png"), path.with_name("seven_found.png")
    asked = [str(none), str(path), "--task", "detection", "--threshold", "0"]
    assert predict.main(asked) == 1
    printed, digits = capsys.readouterr(), predict.find_digits(path, "detection", 0.0)
    for line, (box, class_id, score) in zip(printed.out.splitlines(), digits, strict=True):
        corners = " ".join(f"{value:.1f}" for value in box)
        assert line == f"{path}: class {class_id}, score {score:.3f}, box {corners}"
    assert printed.err == f"{none}: no such file\n{path}: drawn in {drawing}\n"
    assert predict.main([str(path), str(drawing), "--task", "detection", "--threshold", "0"]) == 0
    again = capsys.readouterr()
    assert again.out == printed.out
    assert again.err == f"{drawing}: skipped, drawn by an earlier call\n{path}: drawn in {drawing}\n"
    assert {each.name for each in path.parent.iterdir()} == {"seven.png", "seven_found.png"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_where_there_is_no_digit_is_said_and_control_characters_in_a_name_are_escaped(path, capsys):
    path, output = path.rename(path.with_name("a\x1b[31m\nb.png")), path.parent / "new" / "drawn.png"
    assert predict.main([str(path), "--threshold=1", f"--output={output}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(r"a\x1b[31m\nb.png: no digit" "\n")
    assert "\x1b" not in printed.out + printed.err
    assert predict.read_image(output).height >= 100


@pytest.mark.parametrize(("options", "reason"), [
    ("--threshold nan", r"threshold: expected a number in \[0, 1\], found nan"),
    ("--task detection --weights {}/CompactNet.pt", "holds a network for another task than detection"),
    ("--output drawn.jpg", r"--output: expected a name that ends in \.png"),
    ("--output seven.png", "seven.png: the drawing would take the place of an image"),
    ("seven.jpg", "would take the place of an image, or of another's drawing"),
    ("eight.png --output drawn.png", "would take the place of an image, or of another's drawing"),
    ("--weights none.pt", "none.pt: no such file"),
    ("--weights {}/reader.pt", "reader.pt: expected what save_weights writes"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_line(options, reason, path, capsys, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "argv", ["predict.py", "seven.png", *options.format(predict.WEIGHTS).split()])
    content = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        training.guard(predict.main)
    printed, said = capsys.readouterr(), "" if stopped.value.code == 1 else f"{stopped.value.code}\n"
    assert re.fullmatch(rf".*{reason}.*\n", said + printed.err)
    assert not printed.out
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {"seven.png": content}


def test_the_command_runs_from_any_folder(path):
    command = [sys.executable, HOME / "predict.py", "seven.png", "--weights", "none.pt"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, encoding="utf-8")
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "none.pt: no such file\n")


# ---------------------------------------------------------------------------------------------- published weights


def test_a_reader_that_does_not_fit_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(predict, "READER", tmp_path / "reader.pt")
    torch.save({"0.weight": torch.zeros(1)}, predict.READER)
    with pytest.raises(DataError, match=r"reader\.pt: does not fit the reader"):
        predict.load_reader.__wrapped__()


@pytest.mark.parametrize("task", OWN)
def test_published_weights_are_those_of_the_published_run(task):
    results = RESULTS[task]
    stored = training.load_weights(path := predict.WEIGHTS / f"{OWN[task].__name__}.pt")
    entry = results["networks"][stored.name]
    assert (stored.task, stored.source, stored.epoch) == (task, results["source"], entry["best_epoch"])
    normalization = {name: value.item() for name, value in stored.network[0].state_dict().items()}
    assert normalization == pytest.approx(results["normalization"])
    assert stored.validation == pytest.approx(entry["val"], abs=1e-6)
    assert path.stat().st_size <= 6_100_000
