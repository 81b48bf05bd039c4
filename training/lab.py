"""What a notebook works with: a task's pictures and all that its runs need; and the same, read instead of made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor, nn

import data
import models
import utils
from data import checks
from data.labels import CLASSES
from training.baselines import BrightPatches, trivial_outputs, visible_outputs
from training.boxes import PostProcess
from training.errors import bootstrap, border_rows, edge_errors, edge_rows, piece_rows
from training.loop import overfit
from training.progress import Progress
from training.results import load_published, published_results, save_histories, save_results, summarize
from training.runs import Run, fit
from training.settings import NAMES, Profile, Settings, check_runs_folder, choose_device, choose_profile
from training.weights import save_weights


@dataclass(frozen=True)
class Test:
    """What a network, or one of the `baselines`, does on the test pictures."""

    name: str
    scores: dict[str, float]  # see `utils.score` and `utils.mean_average_precision`
    outputs: Tensor | None = None  # on the CPU; None where only the scores were published
    average: utils.AveragePrecision | None = None

    __test__ = False  # no test of pytest's


class Lab:
    """A task's profile, device, pictures, normalization and folders, and what is done with them."""

    def __init__(self, task: str, profile: Profile):
        self.task, self.profile = task, profile
        self.device = choose_device()
        self.splits = data.load(task, sizes=profile.sizes[task])
        self.normal = utils.Normalizer.fit(self.splits.train.pictures)
        self.figures = profile.outcome_folder("figures")

    @property
    def name(self) -> str:
        """ "localization" or "detection"."""
        return NAMES[self.task]

    def settings_for(self, network: type[nn.Module]) -> Settings:
        """The recipe that the profile has for a network: the reference's for its own, ours for ours."""
        settings = self.profile.own if issubclass(network, models.GridNetwork) else self.profile.settings
        return replace(settings, epochs=self.profile.epochs.get(network.__name__, settings.epochs))

    def overfit(self, network: type[nn.Module], pictures: int, steps: int) -> list[float]:
        """Sanity check: the losses of learning the first few training pictures by heart, see `loop.overfit`."""
        batch = self.splits.train[:pictures].to(self.device)
        return overfit(network, batch, self.normal, self.settings_for(network), steps)

    def train(self, networks: Sequence[type[nn.Module]]) -> list[Run]:
        """Train each network, or load or continue the run that did, and print which it was."""
        runs = []
        for network in networks:
            run = self._run(network)
            epochs = len(run.history["seconds"])
            diverged = f", diverged in epoch {epochs + 1} of {run.settings.epochs}" if run.diverged else ""
            print(
                f"{run.name}: {run.status}, {run.pictures:,} pictures, best epoch {run.best_epoch} of {epochs}"
                f"{diverged}, {run.seconds / 60:.1f} minutes of training"
            )
            runs.append(run)
        return runs

    def _run(self, network: type[nn.Module]) -> Run:
        settings = self.settings_for(network)
        cap = self.profile.caps.get(network.__name__, len(self.splits.train))
        splits = replace(self.splits, train=self.splits.train[:cap])
        with Progress(network.__name__, settings, len(splits.train)) as progress:
            return fit(network, splits, self.normal, settings, progress.hooks)

    def infer(self, network: nn.Module, split: data.Split) -> Tensor:
        """A network's outputs for a split, on the CPU."""
        return utils.infer(network, split.pictures, self.normal).cpu()

    def test(self, run: Run) -> Test:
        """Score a run's best epoch on the test pictures. To be used once, when everything has been decided."""
        return self._test(run.name, self.infer(run.load(self.device), self.splits.test))

    def _test(self, name: str, outputs: Tensor) -> Test:
        average = utils.mean_average_precision(outputs, self.splits.test.labels)
        return Test(name, {**utils.score(outputs, self.splits.test.labels), **average.scores}, outputs, average)

    def test_baselines(self) -> dict[str, Test]:
        """The `baselines` on the test pictures, by name."""
        return {name: self._test(name, outputs) for name, outputs in self.baselines(self.splits.test).items()}

    def test_unsnapped(self, run: Run) -> dict[str, float]:
        """A run's scores on the test pictures without its edges being snapped to whole pixels."""
        network = run.load(self.device)
        network = network.network if isinstance(network, PostProcess) else network
        return self._test(run.name, self.infer(network, self.splits.test)).scores

    @cached_property
    def bright_patches(self) -> BrightPatches:
        """The baseline that learns nothing but thresholds, on training pictures."""
        return BrightPatches.fit(self.splits.train)

    def baselines(self, split: data.Split) -> dict[str, Tensor]:
        """What can be said of pictures without a network, as a network's outputs, by name; of made pictures also what
        an oracle says who knows which ink the noise leaves visible, and no more."""
        outputs = {
            "bright": self.bright_patches.outputs(split),
            "trivial": trivial_outputs(self.splits.train, split),
        }
        return outputs if split.visible is None else {"visible": visible_outputs(split), **outputs}

    def score_baselines(self, split: data.Split) -> dict[str, dict[str, float]]:
        """The scores of the `baselines`, by name."""
        return {name: utils.score(outputs, split.labels) for name, outputs in self.baselines(split).items()}

    def score_fit(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """Each network's scores on the training pictures it was trained on, by its name, measured as on validation
        pictures: after the best epoch, in evaluation mode, without shifts. Training's own scores are not comparable."""
        fits = {}
        for run in runs:
            split = self.splits.train[: run.pictures]
            fits[run.name] = utils.score(self.infer(run.load(self.device), split), split.labels)
        return fits

    def save_figure(self, figure: Figure, name: str) -> Image:
        """Keep a figure as `name`.png among the profile's figures, and return it for the notebook to show."""
        width = round(72 * figure.get_figwidth())
        return Image(utils.save_figure(figure, self.figures, f"{self.name}_{name}").read_bytes(), width=width)

    def save(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        """Keep results, histories, and the weights of the last run, this project's. Returns the results.

        tests: of the selected run first, then of those it is set beside. fits: as `score_fit` gives them.
        """
        results = self._summarize(runs, tests, baselines, fits)
        save_results(self.figures, self.task, results)
        save_histories(runs, self.profile.outcome_folder("histories") / f"{self.name}.pkl")
        save_weights(runs[-1].weights, self.profile.outcome_folder("weights") / f"{self.name}.pt")
        return results

    def _summarize(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        chosen = tests[0]
        (best,) = [run for run in runs if run.name == chosen.name]
        return {
            "profile": self.profile.name,
            "source": self.splits.source,
            "pictures": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "normalization": asdict(self.normal),
            "checks": [check._asdict() for check in checks.compare(self.splits)],
            "networks": {run.name: {**summarize(run), "fit": fits[run.name]} for run in runs},
            "selected": chosen.name,
            "test": chosen.scores,
            "interval": bootstrap(chosen.outputs, self.splits.test.labels),
            "unsnapped": self.test_unsnapped(best),
            "others": {test.name: test.scores for test in tests[1:]},
            **self._errors(chosen.outputs),
            "classes": {
                name: utils.per_class(utils.match(test.outputs, self.splits.test.labels), CLASSES[self.task])
                for name, test in {chosen.name: chosen, **baselines}.items()
            },
            "baselines": {name: test.scores for name, test in baselines.items()},
        }

    def _errors(self, outputs: Tensor) -> dict[str, list[list]]:
        labels = self.splits.test.labels
        rows = {"edges": edge_rows(edge_errors(outputs, labels)), "pieces": piece_rows(outputs, self.splits.test)}
        if self.task == "det":
            rows["borders"] = border_rows(outputs, labels)
        return {name: [list(row) for row in values] for name, values in rows.items()}


class PublishedLab(Lab):
    """A lab that trains nothing: it reads the published histories, results and weights."""

    def _run(self, network: type[nn.Module]) -> Run:
        return load_published(network, self.task)

    def test(self, run: Run) -> Test:
        """As in a lab that trains; of a run without weights the published scores."""
        if run.weights is None:
            return Test(run.name, published_results(self.task)["others"][run.name])
        return super().test(run)

    def score_fit(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """The published scores."""
        return {run.name: published_results(self.task)["networks"][run.name]["fit"] for run in runs}

    def save(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        """Keep what was published beside the figures. Returns it."""
        results = published_results(self.task)
        save_results(self.figures, self.task, results)
        return results


def open_lab(task: str) -> Lab:
    """The lab of a task, "loc" or "det", with the profile that PROFILE names, see `settings.choose_profile`. Raises
    SaveError where its runs could not be kept."""
    check_runs_folder()
    profile = choose_profile()
    return (Lab if profile.trains else PublishedLab)(task, profile)
