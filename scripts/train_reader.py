"""Trains the reader of `predict.py` on varied digits and on what is no digit, and writes weights/reader.pt.

python scripts/train_reader.py            minutes on a CPU

MNIST has hardly a one with an upstroke, which most Europeans write, or a crossed seven, and nothing but digits. So
digits and other shapes are drawn as well and taken from Matplotlib's fonts, and MNIST's are cut, joined and turned.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.datasets import MNIST

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from data import files  # noqa: E402  (the project's modules are found only once its folder is on the path)
from predict import NONE, READER, build_reader  # noqa: E402
from training import guard  # noqa: E402

EPOCHS, BATCH, SIDE = 8, 128, 64  # pixels: digits are varied at twice MNIST's resolution
FONTS = "DejaVuSans DejaVuSans-Bold DejaVuSansMono DejaVuSerif DejaVuSerif-Bold STIXGeneral STIXGeneralItalic cmr10"
LETTERS = "ACEFGHKLMNPQRTUVWXYadefhkmnprtuvwx#%&+@*"  # none that is written like a digit
# Corners (x, y) of strokes, y downwards; | parts strokes, those that begin with ~ are rounded.
SHAPES = {
    0: "~.5,0 .2,.05 0,.5 .2,.95 .5,1 .8,.95 1,.5 .8,.05 .5,0; ~.4,0 .1,.1 0,.5 .2,.95 .5,1 .7,.9 .8,.4 .6,0 .3,0; "
    "~.5,.1 .1,0 0,.5 .1,1 .5,1 .7,.9 .7,.4 .6,0 .4,0; ~.4,0 0,.1 0,.9 .4,1 .8,.9 .8,.1 .4,0|.1,1 .7,.1",
    3: "0,0 .6,0 .2,.4|~.2,.4 .6,.4 .7,.8 .4,1 .2,1 0,.9; ~0,.1 .3,0 .5,.1 .5,.4 .2,.5 .5,.5 .6,.9 .3,1 0,.9; "
    "0,0 .5,0 .1,.4 .5,.5 0,1; 0,.1 0,0 .5,0 .3,.4|~.3,.4 .5,.4 .7,.7 .5,1 .2,1 0,.9; "
    "0,0 .5,0 .3,.4|~.3,.4 .6,.5 .6,.9 .3,1 0,1",
    4: "0,0 0,.6 .7,.6|.6,.3 .5,1; .1,0 0,.5 .6,.5|.6,0 .6,1; .6,0 0,.7 .8,.7|.6,0 .6,1; .5,0 0,.7 .8,.6|.5,.4 .5,1; "
    "~0,0 0,.5 .3,.7 .6,.5 .7,.2 .6,0 .4,.3 .2,1; .4,0 0,.6 .8,.6|.6,.3 .3,1",
    5: "~.1,0 .1,.4 .4,.4 .6,.7 .4,1 0,.9|.1,0 .6,0; ~.1,.1 .1,.5 .5,.4 .6,.7 .3,1 0,.9|.2,0 .6,0; "
    "~.6,0 .1,0 .1,.5 .5,.4 .6,.7 .4,1 0,.9",
    9: "~.6,.1 .2,0 0,.3 .3,.6 .6,.3 .6,.1|.6,.1 .5,1; ~.6,.1 .2,0 0,.3 .3,.6 .6,.3 .6,.1 .6,.9 .3,1 0,.9; "
    "~.3,.5 0,.2 .4,0 .6,.3 .3,.5 .2,.4|~.6,.1 .6,.6 .4,1; ~0,.4 .5,.4 .8,.2 .6,0 .4,0 .4,.4 .3,1",
    NONE: "0,0 0,1 .6,1; .6,0 0,0 0,1; 0,0 1,0 1,1; 0,0 .8,0|.4,0 .4,1; 0,0 .4,1 .8,0; 0,0 .4,.5 .8,0|.4,.5 .4,1; "
    "0,0 .7,1|.7,0 0,1; 0,.5 1,.5|.5,0 .5,1; 0,0 1,0 1,.9 0,.9 0,0; 0,0 .7,0 .7,1 0,1 0,0; 0,1 .5,0 1,1 0,1; "
    "0,.6 .3,1 1,0; 0,0 .6,.5 0,1; 0,0 1,.1; 0,0 1,-.3; 0,0 1,.5; 0,0 .8,.1|0,.4 .8,.5; 0,0 .1,.1",
}


def strokes_of(class_id: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of a one, a seven, one of SHAPES or, for no digit, at random: each corners (N, 2)."""
    if class_id in (1, 7):  # the upstroke of a one is steep, the bar of a seven flat
        low, high = ((0.2, 25, -0.15), (0.6, 65, 0.1)) if class_id == 1 else ((0.4, -12, -0.5), (0.8, 14, 0.1))
        length, angle, foot = rng.uniform(low, high)
        end = length * np.array((-np.cos(np.radians(angle)), np.sin(np.radians(angle))))
        stem = np.array([end + np.array((0, 0.15)), end, (0, 0), (foot, 1)])
        left, right = rng.uniform(0.1, 0.6, 2)
        base, extra = np.array([(foot - left, 1), (foot + right, 1)]), rng.random()
        if class_id == 7:  # perhaps with a serif, or crossed
            return [stem[int(rng.random() > 0.2) :]] + [base * (0.5, 0) + (0, rng.uniform(0.4, 0.6))] * (extra < 0.4)
        return [stem[1:]] if extra < 0.6 else [stem[rng.integers(1, 3) :], base]
    if class_id == NONE and rng.random() < 0.1:  # part of what a cup leaves
        angles = np.linspace(0, rng.uniform(2, 6), 40)[:, None] + rng.uniform(0, 6)
        return [np.hstack((rng.uniform(0.9, 1.1) * np.cos(angles), np.sin(angles)))]
    if class_id == NONE and rng.random() < 0.3:
        return [rng.uniform(0, 1, (rng.integers(2, 5), 2)) for _ in range(rng.integers(1, 4))]
    strokes = []
    for text in rng.choice(SHAPES[class_id].split("; ")).split("|"):
        corners = np.array([corner.split(",") for corner in text.strip("~").split()], dtype=float)
        corners += rng.normal(0, 0.035, corners.shape)
        for _ in range(3 * text.startswith("~")):  # Chaikin's: every corner is cut off
            steps = np.diff(corners, axis=0)
            cut = np.stack((corners[:-1] + steps / 4, corners[:-1] + 3 * steps / 4), 1).reshape(-1, 2)
            corners = np.concatenate((corners[:1], cut, corners[-1:]))
        strokes.append(corners)
    return strokes


def draw(strokes: list[np.ndarray], rng: np.random.Generator) -> Image.Image:
    """Strokes of any thickness, with round ends, as an image of twice the size."""
    corners, width, image = np.concatenate(strokes), int(rng.uniform(3, 20)), Image.new("L", (2 * SIDE, 2 * SIDE))
    for stroke in strokes:
        points = SIDE + 80 / np.ptp(corners, axis=0).max() * (stroke - (corners.min(0) + corners.max(0)) / 2)
        for end in points[[0, -1]]:
            ImageDraw.Draw(image).ellipse((*(end - width / 2), *(end + width / 2)), fill=255)
        ImageDraw.Draw(image).line([tuple(point) for point in points], fill=255, width=width, joint="curve")
    return image


def make_pool(digits: Tensor, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What MNIST lacks: images (M, 64, 64) uint8 and their classes (M,); digits (N, 64, 64) uint8 are MNIST's."""
    counts = {**dict.fromkeys(SHAPES, 1500), 0: 4000, 1: 6000, 3: 4000, 4: 3000, 7: 4000, 9: 2500, NONE: 8000}
    drawn = [(draw(strokes_of(each, rng), rng), each) for each in counts for _ in range(counts[each])]
    for name in FONTS.split():
        font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf"), 90)
        for text in "0123456789" * 15 + LETTERS * 8:
            drawn.append((Image.new("L", (2 * SIDE, 2 * SIDE)), int(text) if text.isdigit() else NONE))
            ImageDraw.Draw(drawn[-1][0]).text((SIDE, SIDE), text, 255, font, "mm")

    def some(count: int, *wanted: int) -> Tensor:
        return digits[torch.isin(classes, torch.tensor(wanted))][rng.integers(5000 * len(wanted), size=count)].clone()

    halves, sideways = some(4000, 0, 2, 3, 5), some(8000, 2, 3, 4, 5, 7)
    halves[::2, : SIDE // 2] = halves[1::4, :, SIDE // 2 :] = halves[3::4, :, : SIDE // 2] = 0
    sideways = torch.cat((sideways[::2].rot90(1, (1, 2)), sideways[1::2].rot90(3, (1, 2))))
    pairs = torch.maximum(some(4000, *range(10)).roll(-14, 2), some(4000, *range(10)).roll(11, 2))  # touch, mostly
    blots = 255 * (field(4000, 1, 4)[:, 0] > torch.empty(4000, 1, 1).uniform_(0.35, 0.65)).byte()
    # Lights, solid and soft, and what cups leave, thin and uneven.
    x, y = torch.meshgrid(*2 * [torch.linspace(-1.6, 1.6, SIDE)], indexing="xy")
    radius = torch.hypot(x * torch.empty(6000, 1, 1).uniform_(0.9, 1.1), y)
    lights = ((1 - radius[::2]) * torch.empty(3000, 1, 1).uniform_(0.5, 2).exp()).clamp(0, 1)
    rings = (1 - (radius[1::2] - 1).abs() / torch.empty(3000, 1, 1).uniform_(0.1, 0.35)).clamp(0, 0.5) * 2
    rings *= (2 * field(3000, 1, 6)[:, 0] - 0.5).clamp(0, 1)
    images = torch.from_numpy(np.stack([np.asarray(image.reduce(2)) for image, _ in drawn]))
    others = [halves, sideways, pairs, blots, (255 * lights).byte(), (255 * rings).byte()]
    labels = [each for _, each in drawn] + [NONE] * sum(map(len, others))
    return torch.cat((images, *others)), torch.tensor(labels)


def field(count: int, channels: int, cells: int) -> Tensor:
    """Random numbers from 0 to 1 that change smoothly, (N, channels, 64, 64)."""
    return F.interpolate(torch.rand(count, channels, cells, cells), (SIDE, SIDE), mode="bilinear")


def warp(images: Tensor, matrix: Tensor, size: int, bend: Tensor | float = 0.0) -> Tensor:
    """Images (N, 1, H, W) seen through matrices (N, 2, 3), and bent, as (N, 1, size, size)."""
    return F.grid_sample(images, F.affine_grid(matrix, [len(images), 1, size, size], False) + bend, align_corners=False)


def vary(images: Tensor) -> Tensor:
    """Digits (N, 64, 64) uint8 turned, sheared, bent, thinner or thicker, with uneven ink: (N, 1, 28, 28), as the
    reader sees pieces of ink. What is done to an image depends on its place among them, which is random."""
    count, ink = len(images), images[:, None].float() / 255
    for part, grow in zip(ink.chunk(8), (-5, -5, -3, 1, 1, 3, 3, 5), strict=False):
        sign, size = (1 if grow > 0 else -1), abs(grow)
        changed = sign * F.max_pool2d(sign * part, size, 1, size // 2)
        part.copy_(torch.where(changed.sum((2, 3), True) > 0.4 * part.sum((2, 3), True), changed, part))
    matrix, turn = torch.zeros(count, 2, 3), 0.13 * torch.randn(count)
    matrix[:, 0, 0], matrix[:, 1, 1] = 1.1 * torch.empty(count).uniform_(0.75, 1.35), 1.1
    matrix[:, 0, 1], matrix[:, 1, 0] = turn + 0.15 * torch.randn(count), -turn
    ink = warp(ink, matrix, SIDE, 0.2 * field(count, 2, 5).movedim(1, 3) - 0.1)
    ink[::3] *= (0.4 + field(len(ink[::3]), 1, 7)).clamp(max=1)  # uneven
    ink[::6] *= field(len(ink[::6]), 1, 32) > 0.35  # grainy
    broken, slope, gap = ink[1::6], torch.randn(2, len(ink[1::6]), 1, 1, 1), torch.linspace(-1, 1, SIDE)
    broken *= (slope[0] * gap + slope[1] * gap[:, None] - 0.3 * slope.mean(0)).abs() > 0.06 * slope.norm(dim=0)
    masks = torch.stack([(ink[:, 0] > 0.3).any(axis) for axis in (1, 2)], 1).int()  # (N, 2, SIDE): columns, rows
    low, high, box = masks.argmax(2), SIDE - masks.flip(2).argmax(2), torch.zeros(count, 2, 3)
    box[:, (0, 1), (0, 1)] = (high - low).amax(1, True) / SIDE * 28 / torch.empty(count, 1).uniform_(18.5, 21)
    box[..., 2] = (low + high) / SIDE - 1 + 0.05 * torch.randn(count, 2)
    shown = F.avg_pool2d(warp(ink, box, 56), 2)
    steep, middle = torch.empty(count, 1, 1, 1).uniform_(0, 2).exp(), torch.empty(count, 1, 1, 1).uniform_(0.2, 0.5)
    shown = ((shown / shown.amax((2, 3), True).clamp(min=0.1) - middle) * steep + middle).clamp(0, 1)  # sharper or not
    return shown / shown.amax((2, 3), True).clamp(min=0.1)


def main() -> None:
    torch.manual_seed(0)
    mnist = MNIST(HOME / "data", download=True)
    doubled = F.interpolate(mnist.data[:, None].float(), scale_factor=2, mode="bilinear")[:, 0]
    digits = F.pad(doubled, (4, 4, 4, 4)).byte()
    images, classes = make_pool(digits, mnist.targets, np.random.default_rng(0))
    images, classes = torch.cat((digits, images)), torch.cat((mnist.targets, classes))
    network, steps = build_reader().train().to(memory_format=torch.channels_last), len(images) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, EPOCHS * steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(vary(images[index]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(outputs.float(), classes[index], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / steps:.4f}", flush=True)
    files.save_tensors(READER, network.state_dict())


if __name__ == "__main__":
    guard(main)
