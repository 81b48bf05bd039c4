"""What a notebook works with: a task's images and all that its runs need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor, nn

import data
import models
import utils
from data import checks
from data.labels import CLASSES
from training import analysis, plots
from training.loop import build, forward_and_loss
from training.progress import Progress
from training.results import load_published, published_results, save_histories, save_results, summarize
from training.runs import Run, fit, keep_freed_memory, save_weights
from training.settings import NAMES, Profile, Settings, check_runs_folder, choose_device, choose_profile

LARGEST_WEIGHTS = 20e6  # bytes of a checkpoint whose weights are published; SkreNet's are 147 MB


@dataclass(frozen=True)
class Test:
    """What a network, or one of the `baselines`, does on the test images."""

    name: str
    scores: dict[str, float]  # see `utils.score` and `utils.mean_average_precision`
    outputs: Tensor | None = None  # on the CPU; None where only the scores were published
    average: utils.AveragePrecision | None = None

    __test__ = False  # no test of pytest's


class Lab:
    """A task's profile, device, images and folders, and what is done with them."""

    def __init__(self, task: str, profile: Profile):
        self.task, self.profile = task, profile
        self.device = choose_device()
        self.splits = data.load(task, sizes=profile.sizes[task])
        self.figures = profile.outcome_folder("figures")

    @property
    def name(self) -> str:
        """ "localization" or "detection"."""
        return NAMES[self.task]

    @cached_property
    def normalize(self) -> utils.Normalize:
        """The first layer of every network."""
        return utils.Normalize.fit(self.splits.train.images)

    def settings_for(self, network: type[nn.Module]) -> Settings:
        """The recipe that the profile has for a network: the reference's for its own, ours for ours."""
        return self.profile.own if network is models.OURS[self.task] else self.profile.settings

    def build(self, network: type[nn.Module]) -> nn.Sequential:
        """A network with its initial weights; raw images go in."""
        return build(network, self.settings_for(network), self.normalize, device=self.device).model

    def overfit(self, network: type[nn.Module], images: int, steps: int) -> list[float]:
        """Sanity check: the losses while the first few training images are memorised, one step after the other, with
        the recipe that is then used. Shifts and stretches, which would make other images of them, are left out."""
        keep_freed_memory()
        batch = self.splits.train[:images].to(self.device)
        settings = replace(self.settings_for(network), epochs=steps, batch_size=images)
        state, losses = build(network, settings, self.normalize, images, device=self.device), []
        for _ in range(steps):
            loss = forward_and_loss(state.model, batch.images, batch.labels, settings)[1].total
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            if state.schedule:
                state.schedule.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def train(self, networks: Sequence[type[nn.Module]]) -> list[Run]:
        """Train each network, or load or continue the run that did, and print which it was."""
        runs = []
        for network in networks:
            run = self._run(network)
            epochs = len(run.history["seconds"])
            diverged = f", diverged in epoch {epochs + 1} of {run.settings.epochs}" if run.diverged else ""
            print(
                f"{run.name}: {run.status}, {run.n_train:,} images, best epoch {run.best_epoch} of {epochs}"
                f"{diverged}, {run.seconds / 60:.1f} minutes of training in {run.trained_on['precision']}"
            )
            runs.append(run)
        return runs

    def _run(self, network: type[nn.Module]) -> Run:
        if network.__name__ in self.profile.published:
            return load_published(network, self.task)
        settings, n_train = self.settings_for(network), self.profile.caps.get(network.__name__)
        with Progress(network.__name__, settings, n_train or len(self.splits.train)) as progress:
            return fit(network, self.splits, settings, progress.hooks, n_train=n_train)

    def infer(self, network: nn.Module, split: data.Split) -> Tensor:
        """A network's outputs for a split, on the CPU."""
        return utils.infer(network, split.images).cpu()

    def test(self, run: Run) -> Test:
        """Score a run's best epoch on the test images; of a run without weights, the published scores. To be used once,
        when everything has been decided."""
        if run.weights is None:
            return Test(run.name, published_results(self.task)["others"][run.name])
        return self._test(run.name, self.infer(run.load(self.device), self.splits.test))

    def _test(self, name: str, outputs: Tensor) -> Test:
        average = utils.mean_average_precision(outputs, self.splits.test.labels)
        return Test(name, {**utils.score(outputs, self.splits.test.labels), **average.scores}, outputs, average)

    def test_baselines(self) -> dict[str, Test]:
        """The `baselines` on the test images, by name."""
        return {name: self._test(name, outputs) for name, outputs in self.baselines(self.splits.test).items()}

    def test_unrounded(self, run: Run) -> dict[str, float]:
        """A run's scores on the test images without its edges being rounded to whole pixels."""
        network = run.load(self.device)
        network[1].round_edges = False
        return self._test(run.name, self.infer(network, self.splits.test)).scores

    @cached_property
    def bright_patches(self) -> analysis.BrightPatches:
        """The baseline that learns nothing but thresholds, on training images."""
        return analysis.BrightPatches.fit(self.splits.train)

    def baselines(self, split: data.Split) -> dict[str, Tensor]:
        """What can be said of images without a network, as a network's outputs, by name; of generated images also what
        an oracle says who knows which ink the noise leaves visible, and no more."""
        outputs = {
            "bright": self.bright_patches.outputs(split),
            "trivial": analysis.trivial_outputs(self.splits.train, split),
        }
        return outputs if split.visible is None else {"visible": analysis.visible_outputs(split), **outputs}

    def score_baselines(self, split: data.Split) -> dict[str, dict[str, float]]:
        """The scores of the `baselines`, by name."""
        return {name: utils.score(outputs, split.labels) for name, outputs in self.baselines(split).items()}

    def score_fit(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """Each network's scores on the training images it was trained on, by its name, measured as on validation
        images: after the best epoch, in evaluation mode, without shifts. Training's own scores are not comparable. Of a
        run without weights, the published scores."""
        fits = {}
        for run in runs:
            if run.weights is None:
                fits[run.name] = published_results(self.task)["networks"][run.name]["fit"]
                continue
            split = self.splits.train[: run.n_train]
            fits[run.name] = utils.score(self.infer(run.load(self.device), split), split.labels)
        return fits

    def save_figure(self, figure: Figure, name: str) -> Image:
        """Keep a figure as `name`.png among the profile's figures, and return it for the notebook to show."""
        width = round(72 * figure.get_figwidth())
        return Image(plots.save_figure(figure, self.figures, f"{self.name}_{name}").read_bytes(), width=width)

    def save(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        """Keep results, histories, and all weights but SkreNet's. Returns the results.

        tests: of the selected run first, then of those it is set beside. fits: as `score_fit` gives them.
        """
        results = self._summarize(runs, tests, baselines, fits)
        save_results(self.figures, self.task, results)
        save_histories(runs, self.profile.outcome_folder("histories") / f"{self.name}.pkl")
        for run in runs:
            if run.status != "published" and 4 * run.parameters < LARGEST_WEIGHTS:
                save_weights(run.weights, self.profile.outcome_folder("weights") / f"{run.name}.pt")
        return results

    def _summarize(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        chosen, labels = tests[0], self.splits.test.labels
        (best,) = [run for run in runs if run.name == chosen.name]
        errors = {
            "edges": analysis.edge_rows(analysis.edge_errors(chosen.outputs, labels)),
            "pieces": analysis.piece_rows(chosen.outputs, self.splits.test),
            **({"borders": analysis.border_rows(chosen.outputs, labels)} if self.task == "det" else {}),
        }
        trained = any(run.status != "published" for run in runs)  # else the profile that was published stays
        return {
            "profile": self.profile.name if trained else published_results(self.task)["profile"],
            "source": self.splits.source,
            "images": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "normalization": {name: value.item() for name, value in self.normalize.state_dict().items()},
            "checks": [check._asdict() for check in checks.compare(self.splits)],
            "networks": {run.name: {**summarize(run), "fit": fits[run.name]} for run in runs},
            "selected": chosen.name,
            "test": chosen.scores,
            "interval": analysis.bootstrap(chosen.outputs, labels),
            "unrounded": self.test_unrounded(best),
            "others": {test.name: test.scores for test in tests[1:]},
            **{name: [list(row) for row in rows] for name, rows in errors.items()},
            "classes": {
                name: analysis.per_class(utils.match(test.outputs, labels), CLASSES[self.task])
                for name, test in {chosen.name: chosen, **baselines}.items()
            },
            "baselines": {name: test.scores for name, test in baselines.items()},
        }


def open_lab(task: str) -> Lab:
    """The lab of a task, "loc" or "det", with the profile that PROFILE names, see `settings.choose_profile`. Raises
    SaveError where its runs could not be kept."""
    check_runs_folder()
    return Lab(task, choose_profile())
