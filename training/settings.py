"""Settings of a training run, the two recipes, and the table of profiles: how much is done."""

import os
import tempfile
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import utils
from data import FULL
from data.files import SaveError

NAMES = {"loc": "localization", "det": "detection"}


def choose_device() -> torch.device:
    """The CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision() -> str:
    """ "bfloat16" where the device computes faster with it, else "float32"."""
    if choose_device().type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        good = able.get("avx512_bf16") or able.get("amx_bf16")
    return "bfloat16" if good else "float32"


@dataclass(frozen=True)
class Settings:
    """How a network is trained. The defaults are the recipe of the reference submission, but for the shuffling and,
    on hardware that has it, for the precision."""

    epochs: int = 60  # the reference's validation accuracy still rises slowly after 50
    batch_size: int = 64
    learning_rate: float = 0.05  # plain SGD
    momentum: float = 0.0
    seed: int = 42  # initial weights, and the order of the pictures in every epoch
    shuffle: bool = True  # the reference did not
    optimizer: str = "sgd"  # or "adamw", which scales the step of every weight by itself
    weight_decay: float = 0.0  # with AdamW of kernels and matrices, never of biases and batch norm
    one_cycle: bool = False  # learning rate up to its value and down to nothing at the end
    warm_up: float = 0.2  # share of the cycle in which it rises
    bounded_boxes: bool = False  # a sigmoid on x, y, w, h; GIoU has no gradient for boxes of negative size
    box_loss: str = "mse"  # or "giou", see `utils.combined_loss`
    l1_weight: float = utils.DEFAULT_WEIGHTS.l1
    giou_weight: float = utils.DEFAULT_WEIGHTS.giou
    edge_weight: float = utils.DEFAULT_WEIGHTS.edges
    class_weight: float = utils.DEFAULT_WEIGHTS.category
    label_smoothing: float = utils.DEFAULT_WEIGHTS.smoothing
    snap_to_pixels: bool = False  # round predicted edges to whole pixels, where labels have theirs
    max_shift: int = 0  # move training pictures by up to so many pixels, anew in every epoch
    max_stretch: float = 0.0  # and make them wider, narrower, taller, flatter by up to this share
    # Of a network's arithmetic in training. Weights, every evaluation, and losses but for the edges' cross-entropy are
    # float32 all the same.
    precision: str = field(default_factory=choose_precision)

    @property
    def loss_weights(self) -> utils.LossWeights:
        """The weights of the loss's parts."""
        boxes = self.l1_weight, self.giou_weight, self.edge_weight
        return utils.LossWeights(*boxes, self.class_weight, self.label_smoothing)

    def __post_init__(self):
        named = {"optimizer": ("sgd", "adamw"), "box_loss": utils.BOX_LOSSES, "precision": ("float32", "bfloat16")}
        for name, allowed in named.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        limits = {"epochs": (1, 10_000), "batch_size": (1, 100_000), "max_shift": (0, 24), "warm_up": (0.01, 0.99)}
        limits |= {"max_stretch": (0, 1)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number in [{low}, {high}], found {getattr(self, name)}")


REFERENCE = Settings()
OWN = Settings(
    epochs=40,  # about an hour of two cores
    learning_rate=4e-3,
    optimizer="adamw",
    weight_decay=0.05,
    one_cycle=True,
    bounded_boxes=True,
    box_loss="giou",
    label_smoothing=0.08,
    snap_to_pixels=True,
    max_shift=8,
    max_stretch=0.15,
)


def describe(settings: Settings) -> str:
    """The settings in words: what every recipe has, then what this one adds, in lines that a notebook shows whole."""
    names = {"sgd": "SGD", "adamw": "AdamW", "mse": "squared errors", "giou": "L1 and GIoU"}
    if settings.optimizer == "sgd":
        extra = f"momentum {settings.momentum:g}" + f", weight decay {settings.weight_decay:g}" * (
            settings.weight_decay > 0
        )
    else:
        extra = f"weight decay {settings.weight_decay:g}"
    line = (
        f"{names[settings.optimizer]}, learning rate {settings.learning_rate:g}, {extra}, batches of "
        f"{settings.batch_size}, {settings.epochs} epochs, seed {settings.seed}, {settings.precision}; "
        f"box loss: {names[settings.box_loss]}"
    )
    added = {
        "pictures in the same order in every epoch": not settings.shuffle,
        "one cycle of the learning rate": settings.one_cycle,
        "bounded boxes": settings.bounded_boxes,
        "edges snapped to whole pixels": settings.snap_to_pixels,
        f"pictures shifted by up to {settings.max_shift} pixels": settings.max_shift,
        f"stretched by up to {settings.max_stretch:.0%}": settings.max_stretch,
        f"class labels smoothed by {settings.label_smoothing:g}": settings.label_smoothing,
    }
    lines = [line, ", ".join(name for name, there in added.items() if there)]
    return "\n".join(part for each in lines for part in textwrap.wrap(each, 118))


@dataclass(frozen=True)
class Profile:
    """How much is done: which pictures, and with which settings."""

    name: str
    about: str
    sizes: dict[str, tuple[int, int, int]]  # task -> how many training, validation and test pictures
    settings: Settings  # for the reference's networks
    own: Settings  # for this project's
    trains: bool = True  # or reads what was published
    submission: bool = False  # its figures, histories and weights are the submission's
    # At most so many training pictures, or epochs, for a network that would take hours of a CPU: FloNet2 works with up
    # to 100 channels at full size, fifty times the arithmetic of SimpleNet2.
    caps: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def outcome_folder(self, name: str) -> Path:
        """Where "figures", "histories" or "weights" go: to the folder of that name for the submission's own, else to
        one among the runs, so that trying the notebooks out never overwrites what was published. Also where the
        project's folder is read-only."""
        return Path(name) if self.submission and os.access(".", os.W_OK) else runs_folder() / self.name / name


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "full",
            "all pictures, 60 epochs, ours 40: the submission, for a GPU",
            FULL,
            REFERENCE,
            OWN,
            submission=True,
        ),
        Profile(
            "long",
            "all pictures, 60 epochs, ours 40, FloNet2 12: for a CPU with a night",
            FULL,
            REFERENCE,
            OWN,
            submission=True,
            epochs={"FloNet2": 12},
        ),
        # Momentum and small batches, because so few steps of plain SGD leave the networks where they started.
        Profile(
            "quick",
            "some pictures, some epochs: minutes on a CPU",
            {"loc": (8_000, 1_000, 2_000), "det": (5_000, 500, 1_000)},
            replace(REFERENCE, epochs=4, learning_rate=0.02, momentum=0.9),
            replace(OWN, epochs=6, batch_size=32),
            caps={"SkreNet": 1_500, "FloNet": 4_000, "SimpleNet": 4_000, "SkreNet2": 3_000, "FloNet2": 100},
        ),
        Profile(
            "published",
            "nothing is trained: histories, results and weights are those of the published run",
            FULL,
            REFERENCE,
            OWN,
            trains=False,
        ),
        Profile(
            "smoke",
            "a handful of pictures, to see that everything runs",
            {"loc": (256, 128, 128), "det": (128, 32, 64)},
            replace(REFERENCE, epochs=2, learning_rate=0.02, momentum=0.9),
            replace(OWN, epochs=2),
            caps={"FloNet2": 32},
        ),
    )
}


def choose_profile() -> Profile:
    """The profile that the environment variable PROFILE names; else full on a CUDA GPU and quick without one."""
    name = os.environ.get("PROFILE") or ("full" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE: expected one of {', '.join(PROFILES)}, found {name!r}")
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
