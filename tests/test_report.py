"""The report: built from results and figures alone, complete, and not older than what it is built from."""

import copy
import datetime
import json
import re
from dataclasses import asdict

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import models
import training
from scripts import report

mpl.use("Agg")  # no screen

SECTIONS = [
    "Problem",
    "Data",
    "Method",
    "Networks",
    "Training and tuning",
    "Results",
    "Localization",
    "Detection",
    "Curves",
    "Boxes",
    "Error analysis",
    "Over- and underfitting",
    "Limits",
    "Reproducibility",
    "References",
]
DATE = datetime.date(2024, 5, 1)
ANEW = "report.pdf is not built from what lies there now: run `make report`"
SHAPES = {
    "curves": (18, 4.6),
    "comparison": (18, 5.2),
    "labels": (18, 5.2),
    "by_size": (10, 5),
    "confusion": (9.5, 8.4),
}


def scores(mean, task):
    away = {"accuracy": 0.05, "iou": -0.05, "mean": 0, "digit_accuracy": 0, "iou_all": -0.06}
    if task == "det":
        away |= {"map": -0.2, "map50": 0, "map75": -0.1, "map_class0": -0.1, "map_class1": -0.3}
    return {name: mean + more for name, more in away.items()}


def invent(profile="long", selected=0, study=True):
    """Results as `training.summarize` gives them, of a run that never was; `selected` counts from the last network."""
    plan = training.PROFILES[profile]
    results = {}
    for task, networks in report.NETWORKS.items():
        names = [network.__name__ for network in networks]
        own = {name: network not in (*models.REFERENCE_LOCALIZERS, *models.REFERENCE_DETECTORS)
               for name, network in zip(names, networks, strict=True)}  # fmt: skip
        best = names[-1 - selected]
        trained = {}
        for number, name in enumerate(names):
            settings = asdict(plan.own if own[name] else plan.settings)
            trained[name] = {
                "parameters": 1,
                "pictures": plan.sizes[task][0],
                "best_epoch": settings["epochs"] - number % 2,
                "epochs": settings["epochs"],
                "seconds": 1234.5 * (number + 1),
                "settings": settings,
                "train": scores(0.62, task),
                "val": scores(0.9 if name == best else 0.6, task),
                "came_apart": number == 1,
            }
        rows = None
        if study:
            ablation = training.plan_ablation(networks[0], networks[-1], task, plan)
            trials = {"ablation": ablation, "comparison": training.plan_comparison(networks, plan)}
            rows = {
                kind: [
                    {"name": trial.name, "network": trial.network.__name__, "pictures": plan.study.pictures,
                     "seeds": [scores(0.4 + 0.01 * number, "loc")] * len(trial.seeds)}
                    for number, trial in enumerate(planned)
                ]
                for kind, planned in trials.items()
            }  # fmt: skip
        results[task] = {
            "profile": profile,
            "source": "mnist",
            "pictures": dict(zip(("train", "val", "test"), plan.sizes[task], strict=True)),
            "normalization": {"mean": 0.4149, "std": 0.214},
            "versions": {"device": "CPU, 2 threads", "python": "3.11.7", "torch": "2.14.1"},
            "networks": trained,
            "selected": best,
            "test": scores(0.88, task),
            "reference": {"network": names[0], "test": scores(0.59, task)},
            "study": rows,
        }
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Figures of the right shapes for any of the selections below."""
    folder = tmp_path_factory.mktemp("figures")
    for selected in (0, 1, 3):
        for files in report.figure_files(invent(selected=selected)).values():
            for name, file in files.items():
                if not (folder / file).exists():
                    figure, _ = plt.subplots(1, 2 if name in report.COLUMNS else 1, figsize=SHAPES.get(name, (14, 5.2)))
                    figure.savefig(folder / file, dpi=20)
                    plt.close(figure)
    return folder


def put(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def words(content):
    """The text of a piece of content as typst describes it."""
    if content["func"] == "space":
        return " "
    return content.get("text", "") + "".join(map(words, content.get("children", [])))


def headings(folder):
    found = report.compiler(report.read_inputs(folder), folder, DATE).query("heading", field="body")
    return [words(heading) for heading in json.loads(found)]


def pages(pdf):
    return int(re.search(rb"/Type/Pages/Count (\d+)", pdf).group(1))


@pytest.mark.parametrize(
    ("profile", "selected", "study"),
    [("long", 0, True), ("full", 0, True), ("full", 3, True), ("long", 1, False), ("quick", 0, False)],
)
def test_it_can_be_built_from_any_results(folder, profile, selected, study):
    put(folder, invent(profile, selected, study))
    assert 4 <= pages(report.build(folder, DATE)) <= 8
    assert headings(folder) == SECTIONS


def test_the_same_inputs_and_date_give_the_same_bytes_and_another_date_only_another_date(folder):
    put(folder, invent())
    first = report.build(folder, DATE)
    assert report.build(folder, DATE) == first
    later = report.build(folder, DATE + datetime.timedelta(1))
    assert later != first
    assert report.stored_fingerprint(later) == report.stored_fingerprint(first)


def test_a_changed_number_or_figure_changes_the_report(folder):
    results = invent()
    first = report.build(put(folder, results), DATE)
    changed = copy.deepcopy(results)
    changed["loc"]["test"]["accuracy"] += 0.0123
    second = report.build(put(folder, changed), DATE)
    assert report.stored_fingerprint(second) != report.stored_fingerprint(first)
    assert second != first
    put(folder, results)
    figure = folder / report.figure_files(results)["det"]["grid"]
    before = figure.read_bytes()
    figure.write_bytes((folder / report.figure_files(results)["det"]["failures"]).read_bytes())
    assert report.stored_fingerprint(report.build(folder, DATE)) != report.stored_fingerprint(first)
    figure.write_bytes(before)
    assert report.build(folder, DATE) == first


def test_every_listed_figure_is_shown_and_no_other():
    source = report.SOURCE.read_text()
    for task, names in report.FIGURES.items():
        shown = set(re.findall(rf'(?:part|panels|strip)\(\s*"{task}", "(\w+)"', source))
        assert shown == {*names, *report.BOXES}


def test_missing_results_and_figures_are_named(folder, tmp_path):
    with pytest.raises(report.NotReady, match=r"results\.json: .*make store"):
        report.build(tmp_path)
    results = invent()
    with pytest.raises(report.NotReady, match="detection's profile"):
        report.build(put(tmp_path, {"loc": results["loc"]}))
    with pytest.raises(report.NotReady, match=r"\.png: expected a figure"):
        report.build(put(tmp_path, results))


def test_figures_are_cut_in_the_gaps_between_their_panels():
    figure, axes = plt.subplots(1, 3, figsize=(18, 5), layout="constrained")
    for axis in axes:
        axis.set(title="panel", xlabel="x", ylabel="y")
    figure.suptitle("A title that reaches over all panels and the gaps between them, so that it hides these gaps" * 2)
    figure.canvas.draw()
    image = report.np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    plt.close(figure)
    top = report.title_end(image)
    assert 0 < top < 0.08
    for cut, place in zip(report.split(image, (1 / 3, 2 / 3), 1), (1 / 3, 2 / 3), strict=True):
        assert abs(cut - place) < 0.05
        column = image[round(top * len(image)) :, round(cut * image.shape[1])]
        assert (column > 0.99).all()


def test_the_report_is_built_from_what_lies_there():
    try:
        inputs = report.read_inputs(report.HOME / "figures")
    except report.NotReady as error:
        pytest.fail(f"{ANEW}\n{error}")
    assert report.TARGET.is_file(), ANEW
    pdf = report.TARGET.read_bytes()
    assert report.stored_fingerprint(pdf) == report.fingerprint(inputs, report.HOME / "figures"), ANEW
    assert 4 <= pages(pdf) <= 8
