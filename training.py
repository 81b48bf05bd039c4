"""Trains one network, resumably; settings and profiles; run folders, checkpoints, pickled histories."""

import ast
import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import utils
from data import FULL, DataError, Splits, augment
from data.files import (
    InUse,
    ReadError,
    SaveError,
    load_pickle,
    load_tensors,
    lock,
    remove_leftovers,
    save_pickle,
    save_tensors,
    write_whole,
)
from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH

# ---------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """How a network is trained. The defaults are the recipe of the reference submission, but for the shuffling."""

    epochs: int = 60  # the reference's validation accuracy still rises slowly after 50
    batch_size: int = 64
    learning_rate: float = 0.05  # plain SGD
    momentum: float = 0.0
    seed: int = 42  # initial weights, and the order of the pictures in every epoch
    optimizer: str = "sgd"  # or "adamw", which scales the step of every weight by itself
    weight_decay: float = 0.0  # of kernels and matrices; never of biases and batch norm
    one_cycle: bool = False  # learning rate up to its value in the first fifth and down to nothing at the end
    bounded_boxes: bool = False  # a sigmoid on x, y, w, h; GIoU has no gradient for boxes of negative size
    box_loss: str = "mse"  # or "giou", see `utils.combined_loss`
    whole_pixels: bool = False  # round the edges of the boxes that are validated and given: labels have whole ones
    own_cell: bool = False  # a cell does not answer for a digit whose centre it sees outside itself
    shift: int = 0  # move training pictures by up to so many pixels, anew in every epoch
    zoom: float = 0.0  # enlarge or shrink them by up to this share
    noise: float = 0.0  # standard deviation of white noise that is added to them; light is 1
    averaging: float = 0.0  # decay per step of a running mean of the weights, which is what is validated; 0: none

    def __post_init__(self):
        for name, allowed in (("optimizer", ("sgd", "adamw")), ("box_loss", utils.BOX_LOSSES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        for name, low, high in (
            ("epochs", 1, None),
            ("batch_size", 1, None),
            ("shift", 0, 24),
            ("zoom", 0, 0.5),
            ("noise", 0, 1),
            ("averaging", 0, 1),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
                raise ValueError(f"{name}: expected a number {limits}, found {value}")


REFERENCE = Settings()
OWN = Settings(
    learning_rate=4e-3,
    optimizer="adamw",
    weight_decay=0.05,
    one_cycle=True,
    bounded_boxes=True,
    box_loss="giou",
    whole_pixels=True,
    own_cell=True,
    shift=8,
)


def describe(settings: Settings) -> str:
    """The settings in a few lines: a line for what every recipe has, a line for what this one adds."""
    names = {"sgd": "SGD", "adamw": "AdamW", "mse": "squared errors", "giou": "L1 and GIoU"}
    lines = [
        f"{names[settings.optimizer]}, learning rate {settings.learning_rate:g}, momentum {settings.momentum:g}, "
        f"batches of {settings.batch_size}, {settings.epochs} epochs, seed {settings.seed}; box loss: "
        f"{names[settings.box_loss]}"
    ]
    if settings.optimizer == "adamw":
        lines[0] = lines[0].replace(f"momentum {settings.momentum:g}", f"weight decay {settings.weight_decay:g}")
    added = {
        "one cycle of the learning rate": settings.one_cycle,
        "bounded boxes": settings.bounded_boxes,
        "edges on whole pixels": settings.whole_pixels,
        "no answer for a centre outside the cell": settings.own_cell,
        f"pictures shifted by up to {settings.shift} pixels": settings.shift,
        f"pictures zoomed by up to {settings.zoom:.0%}": settings.zoom,
        f"white noise of {settings.noise:g} added": settings.noise,
        f"weights averaged, decay {settings.averaging:g}": settings.averaging,
    }
    lines += [", ".join(name for name, there in added.items() if there)]
    return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Study:
    """How large the runs are that compare recipes: small enough for many of them."""

    pictures: int  # training pictures, and validation pictures at most
    epochs: int
    seeds: tuple[int, ...]  # of the last rows; the others are trained with the first only


@dataclass(frozen=True)
class Profile:
    """How much is done: which pictures, and with which settings."""

    name: str
    about: str
    sizes: dict[str, tuple[int, int, int]]  # task -> how many training, validation and test pictures
    settings: Settings  # for the reference's networks
    own: Settings  # for this project's
    published: bool  # whether its figures go to figures/ and count as the submission's
    study: Study | None = None
    # At most so many training pictures for a network that would take hours of a CPU: FloNet2 works with up to 100
    # channels at full size, fifty times the arithmetic of SimpleNet2.
    caps: dict[str, int] = field(default_factory=dict)
    # Epochs for a network that gets more than the settings say.
    epochs: dict[str, int] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "full",
            "all pictures, 60 epochs: the submission, for a GPU",
            FULL,
            REFERENCE,
            OWN,
            published=True,
            study=Study(20_000, 10, (42, 43, 44)),
        ),
        # The full recipe on everything, as far as two cores get in an hour or a few.
        Profile(
            "long",
            "all pictures, few epochs: the full run cut short, for a CPU",
            FULL,
            replace(REFERENCE, epochs=6),
            replace(OWN, epochs=18),
            published=True,
            study=Study(3_000, 4, (42, 43)),
            caps={"FloNet2": 6_000},
            epochs={"CompactNet2": 30},  # there are half as many pictures, hence steps, as in localization
        ),
        # Momentum, because so few steps of plain SGD leave the networks where they started.
        Profile(
            "quick",
            "some pictures, some epochs: minutes on a CPU",
            {"loc": (12_000, 1_000, 2_000), "det": (10_000, 500, 1_000)},
            replace(REFERENCE, epochs=4, learning_rate=0.02, momentum=0.9),
            replace(OWN, epochs=6),
            published=False,
            caps={"SkreNet": 2_500, "FloNet": 4_000, "SimpleNet": 4_000, "SkreNet2": 3_000, "FloNet2": 200},
        ),
        Profile(
            "published",
            "nothing is trained: histories, results and weights are those of the published run",
            FULL,
            REFERENCE,
            OWN,
            published=False,
        ),
        Profile(
            "smoke",
            "a handful of pictures, to see that everything runs",
            {"loc": (256, 128, 128), "det": (128, 32, 64)},
            replace(REFERENCE, epochs=2, learning_rate=0.02, momentum=0.9),
            replace(OWN, epochs=2),
            published=False,
            study=Study(64, 1, (42,)),
            caps={"FloNet2": 32},
        ),
    )
}


NAMES = {"loc": "localization", "det": "detection"}


def choose_profile() -> Profile:
    """The profile that the environment variable PROFILE names; else full on a CUDA GPU and quick without one."""
    name = os.environ.get("PROFILE") or ("full" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE: expected one of {', '.join(PROFILES)}, found {name!r}")
    return PROFILES[name]


def choose_device() -> torch.device:
    """The CUDA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def runs_folder() -> Path:
    """Where runs are kept: the folder that the environment variable RUNS_DIR names, else runs/."""
    return Path(os.environ.get("RUNS_DIR") or "runs")


def outcome_folder(name: str, profile: Profile) -> Path:
    """Where what comes of a profile goes: to the folder of that name for the submission's own, and for the small
    profiles to one among the runs, so that trying the notebooks out never overwrites what was published."""
    return Path(name) if profile.published else runs_folder() / profile.name / name


def figures_folder(profile: Profile) -> Path:
    """Where a profile's figures and results.json go."""
    return outcome_folder("figures", profile)


def weights_file(task: str, profile: Profile) -> Path:
    """Where the weights of this project's network for a task go."""
    return outcome_folder("weights", profile) / f"{NAMES[task]}.pt"


def histories_file(task: str, profile: Profile) -> Path:
    """Where the histories of a task's networks go."""
    return outcome_folder("histories", profile) / f"{NAMES[task]}.pkl"


PUBLISHED_WEIGHTS = {task: Path("weights") / f"{name}.pt" for task, name in NAMES.items()}
PUBLISHED_HISTORIES = {task: Path("histories") / f"{name}.pkl" for task, name in NAMES.items()}


def published_results(task: str) -> dict[str, Any] | None:
    """What figures/results.json holds of a task; None where there is nothing."""
    path = Path("figures") / "results.json"
    return json.loads(path.read_text()).get(task) if path.is_file() else None


def prepare_colab(drive: Any, mount_point: Path | str = "/content/drive") -> None:
    """On Colab: install what it lacks, and keep runs on Google Drive if the user agrees. Harmless when called again.

    drive: the module google.colab.drive. mount_point: where it puts Drive. Where Drive is declined, or cannot be
    written to, runs are kept in runs/ on the machine, and that is said. A RUNS_DIR that names another folder is
    respected. Raises RuntimeError where a package cannot be installed.
    """
    install_lacking(("torchmetrics", "pycocotools"))
    folder = Path(mount_point) / "MyDrive" / "digit-runs"
    if os.environ.get("RUNS_DIR", "") not in ("", str(folder)):
        print(f"Runs are kept in {os.environ['RUNS_DIR']}, as RUNS_DIR says, and not on Drive.")
        return
    try:
        drive.mount(str(mount_point))  # returns at once where Drive is mounted already
        write_whole(folder / "writable", lambda file: file.write(b"a trial"))
        (folder / "writable").unlink()
    except Exception as error:  # Colab raises different ones when the user declines
        os.environ.pop("RUNS_DIR", None)
        reason = str(error) or type(error).__name__
        print(f"No Drive ({reason}): runs are kept on this machine only and are lost with it.")
    else:
        os.environ["RUNS_DIR"] = str(folder)
        print("Runs are kept on Drive, in MyDrive/digit-runs: Run all after a disconnect goes on where it was.")


def install_lacking(names: Sequence[str]) -> None:
    """Install with pip those of the packages that cannot be imported, in the versions of requirements.txt.

    What else is named there and installed, torch above all, stays as it is: rather than replace it, pip fails. Raises
    RuntimeError, with pip's words, where a package cannot be installed.
    """
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    if not lacking:
        return
    lines = (Path(__file__).resolve().parent / "requirements.txt").read_text().splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    wanted = {pin.partition("==")[0]: pin for pin in pins if pin}
    kept = []
    for name in wanted.keys() - set(lacking):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            kept.append(f"{name}=={importlib.metadata.version(name)}")
    print("installing", *(wanted[name] for name in lacking))
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(kept))
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        command += ["--constraint", str(constraints), *(wanted[name] for name in lacking)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"pip cannot install {', '.join(lacking)}:\n{done.stdout.strip()}")
    importlib.invalidate_caches()  # else the running process may not see what has just come


# ---------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """A finished training run of one network."""

    network: type[nn.Module]
    task: str
    folder: Path
    settings: Settings
    pictures: int  # how many it was trained on
    history: dict[str, list[float]]  # a list per column, an entry per epoch
    how: str  # "trained", "continued after epoch k", "loaded" or "published"

    @property
    def name(self) -> str:
        return self.network.__name__

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, with the highest validation mean accuracy; the first of equals."""
        return best_epoch(self.history)

    @property
    def train(self) -> dict[str, float]:
        """Scores on the training pictures during the best epoch, measured on the weights as they changed."""
        return self._scores("train")

    @property
    def val(self) -> dict[str, float]:
        """Scores on the validation pictures after the best epoch."""
        return self._scores("val")

    def _scores(self, part: str) -> dict[str, float]:
        names = [name for name in self.history if name.startswith(f"{part}_")]
        return {name.removeprefix(f"{part}_"): self.history[name][self.best_epoch - 1] for name in names}

    def best(self, device: torch.device | None = None) -> nn.Module:
        """The network with the weights of its best epoch, in evaluation mode. Raises DataError where their file has
        been damaged since."""
        network = assemble(self.network, self.settings)
        if self.how == "published":
            return load_weights(network, self.name, PUBLISHED_WEIGHTS[self.task]).to(device or choose_device()).eval()
        network.load_state_dict(read_best(self.folder, self.best_epoch, network))
        return network.to(device or choose_device(), memory_format=torch.channels_last).eval()


def best_epoch(history: dict[str, list[float]]) -> int:
    """The epoch, counted from 1, with the highest validation mean accuracy; the first of equals."""
    means = history["val_mean"]
    return means.index(max(means)) + 1


def best_file(folder: Path, epoch: int) -> Path:
    """The weights after the best epoch so far. Its number is in the name, so that the file always belongs to the
    history in last.pt, even if the process is killed between writing the two."""
    return folder / f"best-{epoch:03d}.pt"


def code_of(*pieces: type | Callable) -> str:
    """The source of classes and functions and of everything in their own modules that they use, without comments
    and docstrings. Two texts differ where the code does, not where its wording does."""
    found: dict[str, str] = {}
    waiting = list(pieces)
    while waiting:
        piece = waiting.pop()
        name = f"{piece.__module__}.{piece.__qualname__}"
        if name in found:
            continue
        tree = _definition(piece)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        found[name] = ast.unparse(tree)
        module = sys.modules[piece.__module__]
        for node in ast.walk(tree):
            used = getattr(module, node.id, None) if isinstance(node, ast.Name) else None
            if (inspect.isclass(used) or inspect.isfunction(used)) and used.__module__ == piece.__module__:
                waiting.append(used)
            elif isinstance(used, (int, float, str, tuple, list, dict)):
                found[f"{piece.__module__}.{node.id}"] = repr(used)
    return "\n".join(f"# {name}\n{source}" for name, source in sorted(found.items()))


def _definition(piece: type | Callable) -> ast.AST:
    """The syntax tree of a class or function, looked up by its name: `inspect` goes by line numbers, which are wrong
    once the file has been edited while the program runs."""
    file = getattr(sys.modules[piece.__module__], "__file__", None)
    if file is not None:
        for node in ast.parse(Path(file).read_text()).body:
            if getattr(node, "name", None) == piece.__qualname__:
                return node
    return ast.parse(textwrap.dedent(inspect.getsource(piece)))  # defined in a notebook, or within a function


def describe_run(network: type[nn.Module], splits: Splits, normal: utils.Normalizer, settings: Settings) -> dict:
    """All that a run's result depends on; runs that differ in any of it are different runs."""
    code = code_of(
        network, build, train_epoch, utils.Normalizer, utils.predict, utils.score, augment.shift, augment.zoom
    )
    return {
        "network": network.__name__,
        "task": splits.task,
        "settings": asdict(settings),
        "data": splits.fingerprint,
        "normalization": [normal.mean, normal.std],
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }


# ---------------------------------------------------------------------------------------------- training


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the state saved after the epoch before is untouched."""


class RunInUse(RuntimeError):
    """Another process is training the same run."""


MEASURED = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all", "mean")
RELEASED_WITHIN = 10.0  # seconds until a process that is being stopped, as a kernel in its restart, is surely dead
WRITTEN_WITHIN = 3600.0  # seconds in which any checkpoint is written, on the slowest of drives


def fit(
    network: type[nn.Module],
    splits: Splits,
    normal: utils.Normalizer,
    task: str,
    settings: Settings,
    runs: Path | None = None,
    device: torch.device | None = None,
    quiet: bool = False,
) -> Run:
    """Train a network, or continue or load the run that did; only one with the same settings, data and code counts.

    After each epoch the run's folder (under `runs`, by default `runs_folder()`) holds history.pkl, the weights of
    the best epoch so far, last.pt, the full state, and previous.pt, the one before. Killed at any moment, the next
    call continues after the last whole epoch, or the one before where last.pt has been damaged, and ends with the
    same history and weights, bit for bit on the same machine's CPU.

    Training scores are gathered during the epoch, on the weights as they change. With `quiet` a notebook keeps a line
    of it and no log of the epochs.

    Two processes never train one run at once. The second waits for RELEASED_WITHIN seconds and then raises RunInUse:
    a notebook that waited longer would look as if it hung, perhaps for a kernel that was forgotten. Where the system
    has no locks, as on Windows and some network drives, the two do the same work twice; files are still whole.

    Raises NonFiniteLoss, RunInUse, SaveError (an OSError) where files cannot be written, and ReadError where a drive
    is away; the last state that was saved stays.
    """
    description = describe_run(network, splits, normal, settings)
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(runs or runs_folder()) / f"{task}-{network.__name__}-{key}"
    device = device or choose_device()
    keep_freed_memory()
    try:
        with lock(folder / ".lock", RELEASED_WITHIN) as alone:
            # With the lock no other process is writing; without it one may be.
            remove_leftovers(folder, 0.0 if alone else WRITTEN_WITHIN)
            trainee = build(network, settings, device, len(splits.train))
            history = resume(folder, trainee, network.__name__, settings)
            done = len(history.get("seconds", []))
            how = "loaded" if done == settings.epochs else f"continued after epoch {done}" if done else "trained"
            if done < settings.epochs:
                if not alone:
                    print(f"{folder}: cannot be locked here, so take care not to train this run in two places at once")
                if not done:
                    text = json.dumps(description, indent=1).encode()
                    write_whole(folder / "run.json", lambda file: file.write(text))
                progress = Progress(network.__name__, settings, len(splits.train), done, quiet)
                train(trainee, splits, normal, task, settings, device, folder, history, progress)
    except InUse as holder:
        raise RunInUse(
            f"{folder}: {network.__name__} is being trained by another process ({holder}). Wait until it has finished "
            "or stop it, then run this again."
        ) from None
    return Run(network, task, folder, settings, len(splits.train), history, how)


def fit_all(
    networks: Sequence[type[nn.Module]],
    splits: Splits,
    normal: utils.Normalizer,
    task: str,
    profile: Profile,
    settings: Settings,
) -> list[Run]:
    """`fit` each network with the settings, and print what was done. A network named in the profile's caps gets only
    so many training pictures, and one named in its epochs so many epochs. The profile `published` trains nothing and
    takes the published histories."""
    runs = []
    for network in networks:
        epochs = profile.epochs.get(network.__name__, settings.epochs)
        cap = profile.caps.get(network.__name__, len(splits.train))
        train = splits.train if cap >= len(splits.train) else splits.train.head(cap)
        if profile.name == "published":
            run = load_published(network, task)
        else:
            run = fit(network, replace(splits, train=train), normal, task, replace(settings, epochs=epochs))
        print(
            f"{run.name}: {run.how}, {run.pictures:,} pictures, best epoch {run.best_epoch} of "
            f"{len(run.history['seconds'])}, {sum(run.history['seconds']) / 60:.1f} minutes of training"
        )
        runs.append(run)
    return runs


def save_histories(runs: Sequence[Run], path: Path) -> None:
    """Pickle the runs' histories, and what they were made with, by the network's name: plain values only."""
    save_pickle(
        path,
        {
            run.name: {"history": run.history, "pictures": run.pictures, "settings": asdict(run.settings)}
            for run in runs
        },
    )


def load_published(network: type[nn.Module], task: str) -> Run:
    """The published run of a network, without its weights. Raises DataError where there is none."""
    path = PUBLISHED_HISTORIES[task]
    found = load_pickle(path).get(network.__name__)
    if found is None:
        raise DataError(f"{path}: holds no history of {network.__name__}")
    return Run(
        network, task, path.parent, Settings(**found["settings"]), found["pictures"], found["history"], "published"
    )


def load_weights(model: nn.Module, name: str, path: Path) -> nn.Module:
    """Load weights that `save_weights` wrote into a model of the network of that name. Raises DataError where the
    file is of another network."""
    stored = load_tensors(path)
    if stored["network"] != name:
        raise DataError(f"{path}: expected weights of {name}, found those of {stored['network']}")
    model.load_state_dict(stored["weights"])
    return model.to(memory_format=torch.channels_last)


def score_baseline(
    baseline: Run, best: Run, test: dict[str, float], splits: Splits, normal: utils.Normalizer, profile: Profile
) -> dict[str, float]:
    """The test scores of the reference's best network, for comparison: those at hand if it is the selected one, the
    published ones with the profile `published`, which has no weights of it."""
    if baseline is best:
        return test
    if profile.name == "published":
        return published_results(best.task)["reference"]["test"]
    outputs = utils.predict(baseline.best(), splits.test.pictures, normal).cpu()
    scores = utils.score(outputs, splits.test.labels, best.task)
    if best.task == "det":
        scores |= utils.mean_average_precision(outputs, splits.test.labels, best.task).scores
    return scores


class Trial(NamedTuple):
    """A row of a comparison of recipes."""

    name: str
    network: type[nn.Module]
    settings: Settings
    seeds: tuple[int, ...]


def plan_ablation(start: type[nn.Module], own: type[nn.Module], task: str, profile: Profile) -> list[Trial]:
    """From a network with the reference's recipe to this project's, one change at a time; then what was tried and not
    kept, each added to this project's recipe by itself."""
    study, network, settings = profile.study, start, replace(REFERENCE, epochs=profile.study.epochs)
    trials = [Trial(f"{start.__name__}, the reference's recipe", network, settings, study.seeds[:1])]
    for name, fields in (
        ("+ AdamW, one cycle of the learning rate", ("optimizer", "learning_rate", "weight_decay", "one_cycle")),
        ("+ boxes bounded by a sigmoid", ("bounded_boxes",)),
        ("+ L1 and GIoU for squared errors", ("box_loss",)),
        (f"+ {own.__name__} for {start.__name__}", ()),
        ("+ edges rounded to whole pixels", ("whole_pixels",)),
        ("+ no cell answers for a centre outside it", ("own_cell",)),
        ("+ pictures shifted anew in every epoch", ("shift",)),
    ):
        if fields == ("own_cell",) and task == "loc":
            continue  # there is one cell, the picture
        network = own if not fields else network
        settings = replace(settings, **{field: getattr(profile.own, field) for field in fields})
        trials.append(Trial(name, network, settings, study.seeds if network is own else study.seeds[:1]))
    for name, change in (
        ("tried: pictures zoomed by up to 12% as well", {"zoom": 0.12}),
        ("tried: fresh noise added in every epoch", {"noise": 0.05}),
        ("tried: weights averaged over about 100 steps", {"averaging": 0.99}),
    ):
        trials.append(Trial(name, network, replace(settings, **change), study.seeds))
    return trials


def plan_comparison(networks: Sequence[type[nn.Module]], profile: Profile) -> list[Trial]:
    """Every network with either recipe."""
    study = profile.study
    return [
        Trial(name, network, replace(settings, epochs=study.epochs), study.seeds[:1])
        for network in networks
        for name, settings in (("reference", REFERENCE), ("new", profile.own))
    ]


def try_out(
    trials: Sequence[Trial], splits: Splits, normal: utils.Normalizer, task: str, profile: Profile
) -> list[dict[str, Any]]:
    """Train each trial with each of its seeds on the study's pictures, and score it on validation pictures.

    Returns a dict per trial: name, network, pictures, epochs, and seeds, a list of validation scores in the best epoch.
    """
    rows = []
    for trial in trials:
        count = min(profile.study.pictures, profile.caps.get(trial.network.__name__, len(splits.train)))
        part = replace(splits, train=splits.train.head(count), val=splits.val.head(profile.study.pictures))
        scores = [
            fit(trial.network, part, normal, task, replace(trial.settings, seed=seed), quiet=True).val
            for seed in trial.seeds
        ]
        rows.append(
            {
                "name": trial.name,
                "network": trial.network.__name__,
                "pictures": len(part.train),
                "epochs": trial.settings.epochs,
                "seeds": scores,
            }
        )
    return rows


def compare_recipes(
    networks: Sequence[type[nn.Module]], splits: Splits, normal: utils.Normalizer, task: str, profile: Profile
) -> dict[str, list[dict[str, Any]]] | None:
    """The ablation from the first network to the last, and all of them with either recipe, in rows as `try_out` gives
    them; None where the profile has no study. With the profile `published` those of the published run."""
    if profile.name == "published":
        return published_results(task)["study"]
    if profile.study is None:
        return None
    plans = {
        "ablation": plan_ablation(networks[0], networks[-1], task, profile),
        "comparison": plan_comparison(networks, profile),
    }
    return {name: try_out(trials, splits, normal, task, profile) for name, trials in plans.items()}


class Trainee(NamedTuple):
    """A network and all that changes with it while it is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None  # steps with every batch
    average: AveragedModel | None  # running mean of the model's weights and batch norm statistics

    @property
    def validated(self) -> nn.Module:
        """The network whose scores count and whose weights are kept."""
        return self.model if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything that training needs to go on as if it had not stopped."""
        return {name: part.state_dict() for name, part in self._asdict().items() if part is not None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for name, part in self._asdict().items():
            if part is not None:
                part.load_state_dict(state[name])


def train_epoch(
    trainee: Trainee,
    pictures: Tensor,
    labels: Tensor,
    normal: utils.Normalizer,
    task: str,
    settings: Settings,
    epoch: int,
    step_done: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """One pass over all pictures in an order drawn from seed and epoch. Returns the outputs for each picture, in the
    pictures' own order, that the network gave when it was trained on it, and the labels that it was trained on,
    which differ from `labels` where pictures are shifted or zoomed.

    On a GPU nothing waits for the device until the epoch's end, where a non-finite loss is then found; on a CPU
    every step is checked.
    """
    model, optimizer, schedule, average = trainee
    model.train()
    generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
    order = torch.randperm(len(pictures), generator=generator)
    # Drawn on the CPU, so that every device sees the same pictures.
    moves = torch.rand(len(pictures), 2, generator=generator).to(pictures.device) if settings.shift else None
    zooms = torch.rand(len(pictures), generator=generator).to(pictures.device) if settings.zoom else None
    # Too much of it to come from the CPU: the one thing that differs from device to device.
    noise = torch.Generator(pictures.device).manual_seed(generator.initial_seed()) if settings.noise else None
    batches = order.to(pictures.device).split(settings.batch_size)
    losses = torch.zeros(len(batches), 4, device=pictures.device)
    outputs, targets = None, labels.clone() if settings.shift or settings.zoom else labels
    for step, index in enumerate(batches):
        batch, target = pictures[index], labels[index]
        if zooms is not None:
            batch, target = augment.zoom(batch, target, task, settings.zoom, zooms[index])
        if moves is not None:
            batch, target = augment.shift(batch, target, task, settings.shift, moves[index])
        if targets is not labels:
            targets[index] = target
        batch = normal(batch)
        if noise is not None:
            random = torch.randn(batch.shape, generator=noise, device=batch.device)
            batch = batch + random * (settings.noise / normal.std)
        batch = batch.contiguous(memory_format=torch.channels_last)
        found = model(batch)
        loss = utils.combined_loss(found, target, task, settings.box_loss)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if average is not None:
            average.update_parameters(model)
        losses[step] = torch.stack(loss).detach()
        if outputs is None:
            outputs = found.new_empty(len(pictures), *found.shape[1:])
        outputs[index] = found.detach()
        if pictures.device.type == "cpu":
            check_finite(losses[step : step + 1], model, epoch, step)
        step_done(step + 1)
    check_finite(losses, model, epoch, 0)
    return outputs, targets


def check_finite(losses: Tensor, model: nn.Module, epoch: int, first: int) -> None:
    """Raise NonFiniteLoss for the first of the steps' losses, (steps, 4), that is NaN or infinite."""
    wrong = ~torch.isfinite(losses).all(1)
    if wrong.any():
        step = int(wrong.nonzero()[0])
        terms = ", ".join(f"{name} {value:g}" for name, value in zip(utils.Loss._fields, losses[step], strict=True))
        raise NonFiniteLoss(
            f"{type(model).__name__}, epoch {epoch}, step {first + step + 1}: loss is not finite: {terms}"
        )


class FinishedBoxes(nn.Module):
    """A network whose answers are finished as the settings want it. Outputs are (N, 15) or (N, 6, 2, 3).

    bounded: box numbers go through a sigmoid, so that no box is negative or larger than the picture.
    whole_pixels: in evaluation every edge is moved to the nearest border between pixels, where labels have theirs;
    in training it stays where it is, since rounding has no gradient.
    own_cell: in evaluation the presence of a digit whose centre the cell itself puts outside the cell is turned into
    absence, p into 1 - p: the neighbour answers for it.
    """

    def __init__(self, network: nn.Module, bounded: bool, whole_pixels: bool, own_cell: bool):
        super().__init__()
        self.network = network
        self.bounded, self.whole_pixels, self.own_cell = bounded, whole_pixels, own_cell

    def forward(self, pictures: Tensor) -> Tensor:
        outputs = self.network(pictures)
        cells = outputs.ndim == 4  # boxes in units of a cell, which is a whole number of pixels in size
        columns, rows = (COLUMNS, ROWS) if cells else (1, 1)
        per_channel = (1, 2, 1, 1) if cells else (1, 2)
        presence, centre, size = outputs[:, :1], outputs[:, 1:3], outputs[:, 3:5]
        if self.bounded:
            largest = outputs.new_tensor((columns, rows)).view(per_channel)
            centre, size = centre.sigmoid(), size.sigmoid() * largest
        if self.whole_pixels and not self.training:
            pixels = outputs.new_tensor((WIDTH / columns, HEIGHT / rows)).view(per_channel)
            low, high = (((centre + sign * size / 2) * pixels).round() / pixels for sign in (-1, 1))
            centre, size = (low + high) / 2, high - low
        if self.own_cell and not self.training:
            # A centre on a border belongs to the right or lower cell; the margin is that of float32.
            inside = ((centre > -1e-4) & (centre < 1 - 1e-4)).all(1, keepdim=True)
            presence = torch.where(inside, presence, -presence.abs())
        return torch.cat((presence, centre, size, outputs[:, 5:]), 1)


def assemble(network: type[nn.Module], settings: Settings) -> nn.Module:
    """The network as the settings want it, with new weights."""
    model = network()
    bounded = settings.bounded_boxes and not getattr(model, "bounded", False)
    if bounded or settings.whole_pixels or settings.own_cell:
        model = FinishedBoxes(model, bounded, settings.whole_pixels, settings.own_cell)
    return model


def build(network: type[nn.Module], settings: Settings, device: torch.device, pictures: int = 1) -> Trainee:
    """The network with its initial weights, which follow from the seed alone, and what trains it on so many
    pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = assemble(network, settings)  # on the CPU, so that every device starts from the same weights
    model.to(device, memory_format=torch.channels_last)  # 1.3 times as fast in training on a CPU
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    else:
        groups = [{"params": [p for p in model.parameters() if p.ndim > 1]}]
        groups += [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = average = None
    if settings.one_cycle:
        # OneCycleLR divides by 0 where a fifth of the steps is one step.
        steps = max(10, settings.epochs * math.ceil(pictures / settings.batch_size))
        schedule = OneCycleLR(optimizer, settings.learning_rate, steps, pct_start=0.2, cycle_momentum=False)
    if settings.averaging:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging), use_buffers=True)
    return Trainee(model, optimizer, schedule, average)


def train(
    trainee: Trainee,
    splits: Splits,
    normal: utils.Normalizer,
    task: str,
    settings: Settings,
    device: torch.device,
    folder: Path,
    history: dict[str, list[float]],
    progress: "Progress",
) -> None:
    """Train the epochs that the history lacks, add them to it, and save after each."""
    pictures, labels = splits.train.pictures.to(device), splits.train.labels.to(device)
    val_pictures, val_labels = splits.val.pictures.to(device), splits.val.labels.to(device)
    for epoch in range(progress.done + 1, settings.epochs + 1):
        began = time.perf_counter()
        outputs, targets = train_epoch(trainee, pictures, labels, normal, task, settings, epoch, progress.step)
        scores = {f"train_{name}": value for name, value in utils.score(outputs, targets, task).items()}
        outputs = utils.predict(trainee.validated, val_pictures, normal)
        scores |= {f"val_{name}": value for name, value in utils.score(outputs, val_labels, task).items()}
        for name, value in scores.items():
            if not math.isfinite(value):  # the last step may have spoilt the weights: never saved
                raise NonFiniteLoss(f"{progress.name}, epoch {epoch}: {name} is {value}")
        rate = trainee.optimizer.param_groups[0]["lr"]
        scores |= {"learning_rate": rate, "seconds": time.perf_counter() - began}
        for name, value in scores.items():
            history.setdefault(name, []).append(value)
        save(folder, trainee, history)
        progress.epoch(history)
    progress.close()


def save(folder: Path, trainee: Trainee, history: dict[str, list[float]]) -> None:
    """Write what an epoch has brought. last.pt comes last: what it does not speak of has not happened.

    The one before it is kept as previous.pt, with the weights that it speaks of, so that damage to last.pt costs an
    epoch. Of the largest network these files, of 150 MB each, are at most four, and a fifth while it is written.
    Raises SaveError.
    """
    epoch, best = len(history["seconds"]), best_epoch(history)
    if best == epoch:
        save_tensors(best_file(folder, epoch), {"epoch": epoch, "model": trainee.validated.state_dict()})
    save_pickle(folder / "history.pkl", history)
    save_tensors(
        folder / "last.pt", {"epoch": epoch, "history": history, **trainee.state()}, keep=folder / "previous.pt"
    )
    before = {name: values[:-1] for name, values in history.items()}
    needed = {best_file(folder, best)} | ({best_file(folder, best_epoch(before))} if epoch > 1 else set())
    for old in set(folder.glob("best-*.pt")) - needed:
        old.unlink(missing_ok=True)


def resume(folder: Path, trainee: Trainee, name: str, settings: Settings) -> dict[str, list[float]]:
    """Bring the trainee to the state after the last whole epoch and return the history until then; an empty one
    where the run has not begun. Where files are damaged it is the epoch before, or the beginning, which is said in a
    line that begins with `name`. A finished run is only read.

    Raises ReadError where files are there but the system does not let them be read, and SaveError.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    damage = []
    for path in (last, previous):
        if path.exists():
            try:
                state = read_checkpoint(path, trainee, settings)
                break
            except ReadError:
                raise
            except DataError as error:
                damage.append(error)
    else:
        if damage:
            print(f"{name}: starts anew, the run before cannot be used: {damage[0]}")
        return {}
    history = state["history"]
    if len(history["seconds"]) == settings.epochs:
        # Nothing is left to train, and the folder may be read-only: history.pkl is a copy for other readers.
        try:
            copied = load_pickle(folder / "history.pkl") == history
        except DataError:
            copied = False
        if not copied:
            with contextlib.suppress(SaveError):
                save_pickle(folder / "history.pkl", history)
        return history
    if damage:
        print(f"{name}: goes back to the end of epoch {len(history['seconds'])}, a file cannot be used: {damage[0]}")
    save_pickle(folder / "history.pkl", history)  # may be an epoch ahead; and shows now whether anything can be written
    if path == previous:
        try:
            os.replace(previous, last)  # else the damaged one would become the previous one
        except OSError as error:
            raise SaveError(f"{last}: cannot be written, {error.strerror}") from error
    trainee.load_state(state)
    return history


def read_checkpoint(path: Path, trainee: Trainee, settings: Settings) -> dict[str, Any]:
    """What `save` wrote to last.pt: epoch, history, and the parts of the trainee's state.

    Raises DataError where it or the weights of the best epoch are damaged, or built in another way than this trainee.
    """
    state = load_tensors(path)
    if not isinstance(state, dict) or not {"epoch", "history"} <= state.keys():
        raise DataError(f"{path}: expected a dict with epoch and history, found something else")
    history, epoch = state["history"], state["epoch"]
    check_history(history, str(path))
    if epoch != len(history["seconds"]) or epoch > settings.epochs:
        raise DataError(
            f"{path}: expected at most {settings.epochs} epochs, found {epoch!r} and a history of "
            f"{len(history['seconds'])}"
        )
    if epoch < settings.epochs:
        wanted = trainee.state()
        wanted["optimizer"] = {**wanted["optimizer"], "state": _optimizer_state(trainee, settings)}
        check_like({name: part for name, part in state.items() if name not in ("epoch", "history")}, wanted, str(path))
    read_best(path.parent, best_epoch(history), trainee.validated)
    return state


def read_best(folder: Path, epoch: int, network: nn.Module) -> dict[str, Tensor]:
    """The weights after the best epoch. Raises DataError where they are damaged or not of such a network."""
    path = best_file(folder, epoch)
    state = load_tensors(path)
    check_like(state, {"epoch": epoch, "model": network.state_dict()}, str(path))
    if state["epoch"] != epoch:
        raise DataError(f"{path}: expected the weights after epoch {epoch}, found those after epoch {state['epoch']}")
    return state["model"]


def _optimizer_state(trainee: Trainee, settings: Settings) -> dict[int, dict[str, Tensor]]:
    """What the optimizer keeps for each parameter once it has made a step, as far as shapes go."""
    parameters = [parameter for group in trainee.optimizer.param_groups for parameter in group["params"]]
    if settings.optimizer == "adamw":
        return {
            number: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            for number, parameter in enumerate(parameters)
        }
    return {number: {"momentum_buffer": parameter} for number, parameter in enumerate(parameters) if settings.momentum}


def check_history(history: Any, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless history is a dict with the columns that `fit`
    writes: lists of finite floats, each as long as the others, at least one."""
    columns = {f"{part}_{name}" for part in ("train", "val") for name in MEASURED} | {"learning_rate", "seconds"}
    if not isinstance(history, dict) or history.keys() != columns:
        raise DataError(f"{where}: expected a history of {len(columns)} columns, found something else")
    lengths = {len(values) if isinstance(values, list) else 0 for values in history.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{where}: expected the history's columns to be lists of one length, found {sorted(lengths)}")
    for name, values in history.items():
        if not all(type(value) is float and math.isfinite(value) for value in values):
            raise DataError(f"{where}: expected finite numbers in the history's {name}, found others")


def check_like(found: Any, wanted: Any, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless `found` is built as `wanted` is: dicts of the same
    keys, lists of the same length, tensors of the same shape and dtype, texts that are the same, numbers of the same
    type; and all numbers finite."""
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"{where}: expected a tensor {tuple(wanted.shape)} of {wanted.dtype}, found {got}")
        if not torch.isfinite(found).all():
            raise DataError(f"{where}: holds NaN or infinity")
    elif isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            different = sorted(map(str, found.keys() ^ wanted.keys())) if isinstance(found, dict) else []
            raise DataError(f"{where}: missing or not expected: {', '.join(different[:4]) or 'everything'}")
        for name, value in wanted.items():
            check_like(found[name], value, f"{where}: {name}")
    elif isinstance(wanted, (list, tuple)):
        if type(found) is not type(wanted) or len(found) != len(wanted):
            raise DataError(f"{where}: expected a {type(wanted).__name__} of {len(wanted)}, found something else")
        for number, value in enumerate(wanted):
            check_like(found[number], value, f"{where}, {number}")
    elif type(found) is not type(wanted) or (isinstance(wanted, str) and found != wanted):
        raise DataError(f"{where}: expected {wanted!r} or the like, found {found!r:.100}")
    elif isinstance(wanted, float) and not math.isfinite(found):
        raise DataError(f"{where}: holds NaN or infinity")


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system, which would have to
    clear every page of every activation and gradient again: training on a CPU is up to 1.5 times as fast."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def overfit(
    network: type[nn.Module],
    pictures: Tensor,
    labels: Tensor,
    normal: utils.Normalizer,
    task: str,
    settings: Settings,
    device: torch.device,
    steps: int,
) -> list[float]:
    """Sanity check: the loss before each of `steps` steps of Adam on one batch. It should come down to little."""
    keep_freed_memory()
    model = build(network, settings, device).model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # gets there in fewer steps than plain SGD
    batch, target = normal(pictures.to(device)).contiguous(memory_format=torch.channels_last), labels.to(device)
    losses = []
    for _ in range(steps):
        loss = utils.combined_loss(model(batch), target, task).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def summarize(
    profile: Profile,
    splits: Splits,
    normal: utils.Normalizer,
    runs: Sequence[Run],
    best: Run,
    test: dict[str, float],
    baseline: Run,
    baseline_test: dict[str, float],
    study: dict[str, Any] | None,
) -> dict[str, Any]:
    """What results.json holds of a task: how it was run, every network's scores in its best epoch, the test scores of
    the selected network and, for comparison, of the reference's best, and the comparison of recipes if one was made.
    With the profile `published` it is what was published.
    """
    if profile.name == "published":
        return published_results(best.task)
    return {
        "profile": profile.name,
        "source": splits.source,
        "pictures": {name: len(getattr(splits, name)) for name in ("train", "val", "test")},
        "normalization": asdict(normal),
        "versions": utils.versions(),
        "networks": {
            run.name: {
                "parameters": sum(parameter.numel() for parameter in run.network().parameters()),
                "pictures": run.pictures,
                "best_epoch": run.best_epoch,
                "epochs": len(run.history["seconds"]),
                "seconds": round(sum(run.history["seconds"]), 1),
                "settings": asdict(run.settings),
                "train": run.train,
                "val": run.val,
                "came_apart": utils.came_apart(run.history),
            }
            for run in runs
        },
        "selected": best.name,
        "test": test,
        "reference": {"network": baseline.name, "test": baseline_test},
        "study": study,
    }


def save_weights(run: Run, splits: Splits, normal: utils.Normalizer, path: Path) -> None:
    """Write the weights of a run's best epoch with all that using them takes: tensors and plain values only, to be
    read with `weights_only=True`."""
    save_tensors(
        path,
        {
            "network": run.name,
            "task": run.task,
            "weights": run.best(torch.device("cpu")).state_dict(),
            "normalization": asdict(normal),
            "settings": asdict(run.settings),
            "source": splits.source,
            "pictures": run.pictures,
            "epoch": run.best_epoch,
            "validation": run.val,
        },
    )


# ---------------------------------------------------------------------------------------------- progress


@dataclass
class Progress:
    """One live line: in a notebook a display that ends as a short log, in a terminal a line that is rewritten."""

    name: str
    settings: Settings
    pictures: int
    done: int
    quiet: bool = False
    history: dict[str, list[float]] = field(default_factory=dict)
    shown: float = 0.0
    display: Any = None

    def __post_init__(self):
        self.began = self.epoch_began = time.perf_counter()
        self.first = self.done
        if "ipykernel" in sys.modules:
            from IPython import get_ipython
            from IPython.display import display

            if getattr(get_ipython(), "kernel", None) is not None:
                self.display = display(_Text(f"{self.name}: starting"), display_id=True)

    def step(self, step: int) -> None:
        """After each batch; shows at most twice a second, and asks the device nothing."""
        now = time.perf_counter()
        if now - self.shown >= 0.5:
            seen = min(step * self.settings.batch_size, self.pictures)
            self._show(seen, now)

    def epoch(self, history: dict[str, list[float]]) -> None:
        """After each epoch, with the history so far."""
        self.history, self.done = history, len(history["seconds"])
        self._show(0, time.perf_counter())
        self.epoch_began = time.perf_counter()

    def close(self) -> None:
        """At the end: the live line becomes a short log."""
        if self.display is not None:
            self.display.update(_Text(one_line_log(self) if self.quiet else short_log(self.history)))
        elif sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)

    def _show(self, seen: int, now: float) -> None:
        self.shown = now
        trained = (self.done - self.first) * self.pictures + seen
        rate = trained / (now - self.began)
        left = ((self.settings.epochs - self.done) * self.pictures - seen) / max(rate, 1e-9)
        line = f"{self.name} epoch {min(self.done + 1, self.settings.epochs)}/{self.settings.epochs}"
        line += f" {seen:,}/{self.pictures:,} pictures, {rate:,.0f}/s, {left / 60:.0f}:{left % 60:02.0f} left"
        if self.history:
            loss, val_loss, accuracy, mean = (
                self.history[name][-1] for name in ("train_loss", "val_loss", "val_accuracy", "val_mean")
            )
            line += f" | loss {loss:.3f}, val {val_loss:.3f}, accuracy {accuracy:.3f}, mean {mean:.3f}"
        if self.display is not None:
            self.display.update(_Text(line))
        elif sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


class _Text:
    """Plain text for IPython's display, without quotes."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def one_line_log(progress: Progress) -> str:
    """What a finished run came to."""
    best, seconds = max(progress.history["val_mean"]), sum(progress.history["seconds"])
    return f"{progress.name}, seed {progress.settings.seed}: validation mean {best:.4f}, {seconds:.0f} s"


def short_log(history: dict[str, list[float]], rows: int = 8) -> str:
    """A few epochs of a history, evenly spaced, with the best one marked."""
    epochs, best = len(history["seconds"]), best_epoch(history)
    step = max(1, -(-epochs // rows))
    chosen = sorted({1, best, epochs, *range(step, epochs + 1, step)})
    lines = ["epoch   training loss   validation loss   accuracy      IoU     mean   seconds"]
    for epoch in chosen:
        row = {name: values[epoch - 1] for name, values in history.items()}
        lines.append(
            f"{epoch:5d}{'*' if epoch == best else ' '}{row['train_loss']:15.4f}{row['val_loss']:18.4f}"
            f"{row['val_accuracy']:11.4f}{row['val_iou']:9.4f}{row['val_mean']:9.4f}{row['seconds']:10.1f}"
        )
    return "\n".join([*lines, "* best epoch by validation mean accuracy"])
