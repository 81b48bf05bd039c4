"""What a notebook works with: a task's images and all that its runs need."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from IPython.display import Image, Markdown
from matplotlib.figure import Figure
from torch import Tensor, nn

import data
import models
import utils
from data import checks
from data.labels import CLASSES
from training import analysis, plots, tables
from training.analysis import labels_as_outputs
from training.loop import NonFiniteLoss, build, train_epoch
from training.progress import Progress
from training.results import load_published, published_results, save_histories, save_results, summarize
from training.runs import Run, fit, save_weights
from training.settings import NAMES, Profile, Settings, check_runs_folder, choose_device, choose_profile

NOISE = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5)  # times the course's
NOISE_IMAGES = 2000
LARGEST_WEIGHTS = 20e6  # bytes of a checkpoint whose weights are published; SkreNet's are 147 MB


class Test(NamedTuple):
    """What a network, or one of the `baselines`, does on the test images."""

    name: str
    scores: dict[str, float]  # see `utils.score` and `utils.mean_average_precision`
    outputs: Tensor | None = None  # on the CPU; None where only the scores were published


class Lab:
    """A task's profile, device, images and folders, and what is done with them."""

    def __init__(self, task: str, profile: Profile):
        self.task, self.profile = task, profile
        self.device = choose_device()
        self.splits = data.load(task, sizes=profile.sizes[task])
        self.figures = profile.outcome_folder("figures")

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
        the recipe that is then used, but for shifts and stretches, which would make other images of them."""
        batch, settings = self.splits.train[:images].to(self.device), self.settings_for(network)
        settings = replace(settings, epochs=steps, batch_size=images, max_shift=0, max_stretch=0.0)
        state = build(network, settings, self.normalize, images, device=self.device)
        losses: list[float] = []
        with contextlib.suppress(NonFiniteLoss):  # which is an answer, too
            losses += (train_epoch(state, batch, settings)[2].item() for _ in range(steps))
        return losses + [math.nan] * (steps - len(losses))

    def train(self, networks: Sequence[type[nn.Module]]) -> list[Run]:
        """Train each network, or load or continue the run that did, and print which it was."""
        runs = []
        for network in networks:
            settings, n_train = self.settings_for(network), self.profile.caps.get(network.__name__)
            if network.__name__ in self.profile.published:
                run = load_published(network, self.task)
            else:
                with Progress(network.__name__, settings, n_train or len(self.splits.train)) as progress:
                    run = fit(network, self.splits, settings, progress.hooks, n_train=n_train)
            epochs = len(run.history["seconds"])
            diverged = f", diverged in epoch {epochs + 1} of {run.settings.epochs}" if run.diverged else ""
            print(
                f"{run.name}: {run.status}, {run.n_train:,} images, best epoch {run.best_epoch} of {epochs}"
                f"{diverged}, {run.seconds / 60:.1f} minutes of training in {run.trained_on['precision']}"
            )
            runs.append(run)
        return runs

    def notice(self) -> Markdown | None:
        """What a reader has to know below a text about the published run, where this is another."""
        published = published_results(self.task) or {}
        if (self.profile.name, self.splits.source) == ("published", published.get("source")):
            return None
        images = f"{len(self.splits.train):,} {tables.IMAGES[self.splits.source]}"
        text = "the numbers in the text above are [the published run's](README.md#results)"
        return Markdown(f"*This is another run (profile `{self.profile.name}`, {images}): {text}.*")

    def infer(self, network: nn.Module, split: data.Split) -> Tensor:
        """A network's outputs for a split, on the CPU."""
        return utils.infer(network, split.images).cpu()

    def test(self, run: Run) -> Test:
        """Score a run on the test images, once everything is decided; without weights, by what was published."""
        if run.weights is None:
            return Test(run.name, published_results(self.task)["others"][run.name])
        return self._test(run.name, self.infer(run.load(self.device), self.splits.test))

    def _test(self, name: str, outputs: Tensor) -> Test:
        labels = self.splits.test.labels
        return Test(name, utils.score(outputs, labels) | utils.mean_average_precision(outputs, labels), outputs)

    def test_baselines(self) -> dict[str, Test]:
        """The `baselines` on the test images, by name."""
        return {name: self._test(name, outputs) for name, outputs in self.baselines(self.splits.test).items()}

    @cached_property
    def bright_patches(self) -> analysis.BrightPatches:
        """The baseline that learns nothing but thresholds, on training images."""
        return analysis.BrightPatches.fit(self.splits.train)

    def baselines(self, split: data.Split) -> dict[str, Tensor]:
        """What can be said of images without a network, as outputs, by name; the visible ink of generated ones only."""
        outputs = {"bright": self.bright_patches.outputs(split)}
        return outputs if split.visible is None else {"visible": labels_as_outputs(split.visible), **outputs}

    def score_fit(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        """Each network's scores on the training images it was trained on, by its name, measured as on validation
        images: in evaluation mode, without shifts. Of a run without weights, the published scores."""
        fits = {}
        for run in runs:
            if run.weights is None:
                fits[run.name] = published_results(self.task)["networks"][run.name]["fit"]
                continue
            split = self.splits.train[: run.n_train]
            fits[run.name] = utils.score(self.infer(run.load(self.device), split), split.labels)
        return fits

    def noise_rows(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Accuracy and IoU in weaker and stronger noise, the digits and their places the same, of our network, the
        reference's best whose weights are at hand, and without a network. Nothing on the course's files."""
        if self.splits.source == "course":
            return []
        *theirs, ours = [run for run in runs if run.weights]
        best = sorted(theirs, key=lambda run: run.val["mean"])[-1:]
        networks = {run.name: partial(self.infer, run.load(self.device)) for run in (ours, *best)}
        networks["bright patches"] = self.bright_patches.outputs
        networks["visible ink"] = lambda split: labels_as_outputs(split.visible)
        sizes, rows = (1, 1, min(NOISE_IMAGES, len(self.splits.test))), []
        for noise in NOISE:
            split = data.load(self.task, self.splits.source, sizes, noise=noise, log=str).test
            for name, answer in networks.items():
                scores = utils.score(answer(split), split.labels)
                rows.append({"noise": noise, "network": name, "accuracy": scores["accuracy"], "iou": scores["iou"]})
        return rows

    def study_figure(self, study: str, columns: dict[str, str], alt: str) -> Image | None:
        """The curves of a published study, if it is there; columns as `plots.plot_study` takes them."""
        rows = {mine[0]["label"]: mine for mine in tables.by_id(self.task, study).values()}
        return self.save_figure(plots.plot_study(rows, columns), study, alt) if rows else None

    def save_figure(self, figure: Figure, name: str, alt: str) -> Image:
        """Keep a figure as `name`.png among the profile's, and return it for the notebook; alt: what it shows."""
        path, width = plots.save_figure(figure, self.figures, f"{NAMES[self.task]}_{name}"), 72 * figure.get_figwidth()
        return Image(path.read_bytes(), width=round(width), alt=alt)

    def save(
        self, runs: Sequence[Run], tests: Sequence[Test], baselines: dict[str, Test], fits: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        """Keep results, histories, and all weights but SkreNet's. Returns the results. tests: of the selected run
        first, then of those it is set beside. fits: as `score_fit` gives them."""
        split, (chosen, *others) = self.splits.test, tests
        (best,) = [run for run in runs if run.name == chosen.name]
        unrounded = best.load(self.device)
        unrounded[1].round_edges = False
        every = {**{test.name: test for test in tests}, **baselines}
        known = {name: each.outputs for name, each in every.items() if each.outputs is not None}
        classes = {name: analysis.class_rows(outputs, split) for name, outputs in known.items()}
        results = {
            "profile": self.profile.name,
            "source": self.splits.source,
            "images": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "normalization": {name: value.item() for name, value in self.normalize.state_dict().items()},
            "checks": [check._asdict() for check in checks.compare(self.splits)],
            "networks": {run.name: {**summarize(run), "fit": fits[run.name]} for run in runs},
            "selected": chosen.name,
            "test": chosen.scores,
            "interval": analysis.bootstrap(chosen.outputs, split.labels),
            "unrounded": self._test("", self.infer(unrounded, split)).scores,
            "others": {test.name: test.scores for test in others},
            "baselines": {name: test.scores for name, test in baselines.items()},
            "classes": classes,
            "edges": analysis.edge_rows(analysis.edge_errors(chosen.outputs, split.labels)),
            "pieces": analysis.piece_rows(chosen.outputs, split),
            "confusion": analysis.confusion(utils.match(chosen.outputs, split.labels), CLASSES[self.task]).tolist(),
        }
        if all(run.status == "published" for run in runs):  # of which more is known than can be computed again
            before = published_results(self.task)
            results |= {"profile": before["profile"], "classes": {**before["classes"], **classes}}
        if self.task == "loc":
            results["noise"] = self.noise_rows(runs)
        else:
            results["borders"] = analysis.border_rows(chosen.outputs, split.labels)
            results["objects"] = analysis.object_rows(known, split.labels)
        save_results(self.figures, self.task, results)
        save_histories(runs, self.profile.outcome_folder("histories") / f"{NAMES[self.task]}.pkl")
        for run in runs:
            if run.status != "published" and 4 * run.parameters < LARGEST_WEIGHTS:
                save_weights(run.weights, self.profile.outcome_folder("weights") / f"{run.name}.pt")
        return results


def open_lab(task: str) -> Lab:
    """The lab of a task, "loc" or "det", in the chosen profile. Raises SaveError where its runs could not be kept."""
    check_runs_folder()
    plots.set_style()
    return Lab(task, choose_profile())
