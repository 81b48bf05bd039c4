"""Settings of a training run, the two recipes, and the table of profiles: how much is done."""

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import models
from data import FULL, DataError
from data.files import SaveError

NAMES = {"loc": "localization", "det": "detection"}


def choose_device() -> torch.device:
    """The CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision() -> str:
    """The precision of convolutions in training: "bfloat16" where the device computes faster with it, else "float32".
    All else is float32: weights, losses, the boxes' geometry, and every evaluation."""
    if choose_device().type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        good = able.get("avx512_bf16") or able.get("amx_bf16")
    return "bfloat16" if good else "float32"


@dataclass(frozen=True)
class Settings:
    """How a network is trained. The defaults are the recipe of the reference submission, but for the shuffling."""

    epochs: int = 60  # the reference's validation accuracy still rises slowly after 50
    batch_size: int = 64
    learning_rate: float = 0.05  # plain SGD
    momentum: float = 0.0
    seed: int = 42  # initial weights, and the order of the images in every epoch
    shuffle: bool = True  # the reference did not
    optimizer: str = "sgd"  # or "adamw", which scales the step of every weight by itself
    weight_decay: float = 0.0  # with AdamW of kernels and matrices, never of biases and batch norm
    one_cycle: bool = False  # learning rate up to its value and down to nothing at the end
    warm_up: float = 0.2  # share of the cycle in which it rises
    box_loss: str = "mse"  # or "giou": `utils.squared_error` or `utils.l1_giou`
    box_weight: float = 1.0
    l1_weight: float = 5.0  # of the box loss "giou"
    giou_weight: float = 1.0  # of the box loss "giou"
    edge_weight: float = 0.5  # of `utils.edge_loss`, where a network gives edges
    class_weight: float = 1.0
    label_smoothing: float = 0.0
    round_edges: bool = False  # bounded boxes, and in evaluation edges on whole pixels, where labels have theirs
    max_shift: int = 0  # move training images by up to so many pixels, anew in every epoch
    max_stretch: float = 0.0  # and make them wider, narrower, taller, flatter by up to this share
    # Of our own networks, see `models.GridNetwork`.
    width: int = 80  # channels at a quarter of the image's size, and twice as many below it
    depth: int = 3  # convolutions at each of the sizes
    center_gate: bool = True  # detection: whether confidence asks for the centre to be in the cell

    def __post_init__(self):
        named = {"optimizer": ("sgd", "adamw"), "box_loss": ("mse", "giou")}
        for name, allowed in named.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")


REFERENCE = Settings()
OWN = Settings(  # about an hour of two cores
    epochs=40, learning_rate=4e-3, optimizer="adamw", weight_decay=0.05, one_cycle=True,
    box_loss="giou", label_smoothing=0.08, round_edges=True, max_shift=8, max_stretch=0.15,
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """How much is done: which images, and with which settings."""

    name: str
    about: str
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=lambda: FULL)  # training, validation, test images
    settings: Settings = REFERENCE  # for the reference's networks
    own: Settings = OWN  # for this project's
    published: tuple[str, ...] = ()  # networks whose published run is read, and not trained
    publishable: bool = False  # whether `--store` takes its figures, histories and weights for the submission's
    # At most so many training images for networks that would take a CPU hours: FloNet2, fifty times SimpleNet2's time.
    caps: dict[str, int] = field(default_factory=dict)

    def outcome_folder(self, name: str) -> Path:
        """Where "figures", "histories" or "weights" go: among the runs, so that trying the notebooks out never
        overwrites what was published, unless `scripts/run.py --store` asks for that by setting STORE."""
        return Path(name) if os.environ.get("STORE") and self.publishable else runs_folder() / self.name / name


PROFILES = {profile.name: profile for profile in (
    Profile("full", "all images, 60 epochs, ours 40: the submission, for a GPU", publishable=True),
    Profile(
        "long", "all images, 60 epochs, ours 40, FloNet2 as published: for a CPU with a night", publishable=True,
        published=("FloNet2",),
    ),
    # Momentum and small batches, because so few steps of plain SGD leave the networks where they started.
    Profile(
        "quick", "some images, some epochs: minutes on a CPU",
        {"loc": (8_000, 1_000, 2_000), "det": (5_000, 500, 1_000)},
        replace(REFERENCE, epochs=4, learning_rate=0.02, momentum=0.9),
        replace(OWN, epochs=6, batch_size=32),
        caps={"SkreNet": 1_500, "FloNet": 4_000, "SimpleNet": 4_000, "SkreNet2": 3_000, "FloNet2": 100},
    ),
    Profile(
        "published", "nothing is trained: histories, results and weights are those of the published run",
        publishable=True,
        published=tuple(network.__name__ for networks in models.NETWORKS.values() for network in networks),
    ),
    Profile(
        "smoke", "a handful of images, to see that everything runs", {"loc": (256, 128, 128), "det": (128, 32, 64)},
        replace(REFERENCE, epochs=2, learning_rate=0.02, momentum=0.9), replace(OWN, epochs=2), caps={"FloNet2": 32},
    ),
)}  # fmt: skip


def choose_profile() -> Profile:
    """The profile that the environment variable PROFILE names; else full on a CUDA GPU and quick without one."""
    name = os.environ.get("PROFILE") or ("full" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise DataError(f"PROFILE: expected one of {', '.join(PROFILES)}, found {name!r}")
    return PROFILES[name]


def runs_folder() -> Path:
    """Where runs are kept: the folder that the environment variable RUNS_DIR names, else runs/."""
    return Path(os.environ.get("RUNS_DIR") or "runs").expanduser()


def check_runs_folder() -> None:
    """Raise SaveError, before hours are spent, where nothing can be written to the folder of runs."""
    folder = runs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        said = f"{folder}: runs cannot be kept there, {error.strerror}"
        raise SaveError(f"{said}. The environment variable RUNS_DIR names another folder") from error
