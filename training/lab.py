"""What a notebook works with: a task's pictures and all that its runs need; and the same, read instead of made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

import data
import models
import utils
from data import checks
from training.baselines import BrightPatches, trivial_outputs, visible_outputs
from training.loop import overfit
from training.progress import Progress
from training.results import load_published, published_results, save_histories, save_results, summarize
from training.runs import Run, fit
from training.settings import NAMES, Profile, Settings, check_runs_folder, choose_device, choose_profile
from training.study import compare_recipes
from training.weights import save_weights


@dataclass(frozen=True)
class Test:
    """What a network does on the test pictures."""

    run: Run
    scores: dict[str, float]  # see `utils.score`, and in detection `utils.mean_average_precision`
    outputs: Tensor | None = None  # on the CPU; None where only the scores were published
    average: utils.AveragePrecision | None = None  # in detection

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
        return self.profile.own if issubclass(network, models.GridNetwork) else self.profile.settings

    def overfit(self, network: type[nn.Module], pictures: int, steps: int) -> list[float]:
        """Sanity check: the losses of learning the first few training pictures by heart, see `loop.overfit`."""
        batch = self.splits.train[:pictures].to(self.device)
        return overfit(network, batch, self.normal, self.settings_for(network), steps)

    def train(self, networks: Sequence[type[nn.Module]]) -> list[Run]:
        """Train each network, or load or continue the run that did, and print which it was."""
        runs = []
        for network in networks:
            run = self._run(network)
            print(
                f"{run.name}: {run.status}, {run.pictures:,} pictures, best epoch {run.best_epoch} of "
                f"{len(run.history['seconds'])}, {run.seconds / 60:.1f} minutes of training"
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
        outputs = self.infer(run.load(self.device), self.splits.test)
        scores, average = self._score(outputs, self.splits.test)
        return Test(run, scores, outputs, average)

    def _score(self, outputs: Tensor, split: data.Split) -> tuple[dict[str, float], utils.AveragePrecision | None]:
        scores, average = utils.score(outputs, split.labels), None
        if self.task == "det":
            average = utils.mean_average_precision(outputs, split.labels)
            scores |= average.scores
        return scores, average

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
        return {name: self._score(outputs, split)[0] for name, outputs in self.baselines(split).items()}

    def compare_recipes(self, networks: Sequence[type[nn.Module]]) -> dict[str, Any] | None:
        """Which change brings what, see `study.compare_recipes`; None where the profile leaves it out."""
        return compare_recipes(networks, self.splits, self.normal, self.profile)

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Keep a figure as `name`.png among the profile's figures, and return it for the notebook to show."""
        return utils.save_figure(figure, self.figures, f"{self.name}_{name}")

    def save(self, runs: Sequence[Run], test: Test, baseline: Test, study: dict[str, Any] | None) -> dict[str, Any]:
        """Keep results, histories, and the weights of the last run, this project's. Returns the results."""
        results = self._summarize(runs, test, baseline, study)
        save_results(self.figures, self.task, results)
        save_histories(runs, self.profile.outcome_folder("histories") / f"{self.name}.pkl")
        save_weights(runs[-1].weights, self.profile.outcome_folder("weights") / f"{self.name}.pt")
        return results

    def _summarize(
        self, runs: Sequence[Run], test: Test, baseline: Test, study: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "profile": self.profile.name,
            "source": self.splits.source,
            "pictures": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "normalization": asdict(self.normal),
            "checks": [check._asdict() for check in checks.compare(self.splits)],
            "networks": {run.name: summarize(run) for run in runs},
            "selected": test.run.name,
            "test": test.scores,
            "reference": {"network": baseline.run.name, "test": baseline.scores},
            "baselines": self.score_baselines(self.splits.test),
            "study": study,
        }


class PublishedLab(Lab):
    """A lab that trains nothing: it reads the published histories, results and weights."""

    def _run(self, network: type[nn.Module]) -> Run:
        return load_published(network, self.task)

    def test(self, run: Run) -> Test:
        """As in a lab that trains; of a run without weights the published scores."""
        if run.weights is None:
            return Test(run, published_results(self.task)["reference"]["test"])
        return super().test(run)

    def compare_recipes(self, networks: Sequence[type[nn.Module]]) -> dict[str, Any] | None:
        """The published comparison."""
        return published_results(self.task)["study"]

    def save(self, runs: Sequence[Run], test: Test, baseline: Test, study: dict[str, Any] | None) -> dict[str, Any]:
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
