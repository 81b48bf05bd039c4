"""The report: built from results and figures alone, complete, and not older than what it is built from."""

import copy
import datetime
import json
import re
import shutil

import pytest
from PIL import Image

import models
from scripts import report

SECTIONS = """Problem; Data; Method; Networks; Training and tuning; Results; Localization; Detection; As the
reference trained them; Curves and boxes; Error analysis; Over- and underfitting; What the reference
left open; Limits; Reproducibility; References"""
PAGES = range(4, 11)
DATE = datetime.date(2024, 5, 1)
RESULTS = json.loads((report.HOME / "figures" / "results.json").read_text(encoding="utf-8"))


def change(**changes):
    """The published results, a detection score of which may be another."""
    results = copy.deepcopy(RESULTS)
    results["det"]["test"].update(changes)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for path in (report.HOME / "figures").glob("*.png"):
        Image.open(path).convert("RGB").reduce(8).save(folder / path.name)  # of the same shape, and quicker to show
    return folder


def put(folder, results):
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def words(content):
    """The text of a piece of content as typst describes it."""
    space, text = " " * (content.get("func") == "space"), content.get("text", "")
    inner = [*content.get("children", []), *(content[name] for name in ("body", "child") if name in content)]
    return space + (text if isinstance(text, str) else "") + "".join(map(words, inner))


def pages(pdf):
    return int(re.search(rb"/Type/Pages/Count (\d+)", pdf).group(1))


def test_it_has_all_sections_and_figures(folder):
    assert pages(report.build(put(folder, change()), DATE)) in PAGES
    compiler = report.compiler(report.read_inputs(folder), folder, DATE)
    queries = (("heading", "body"), ("image", "alt"), ("figure", None))
    headings, images, figures = (json.loads(compiler.query(*what)) for what in queries)
    assert "; ".join(map(words, headings)) == SECTIONS.replace("\n", " ")
    assert sorted(images) == sorted(sum(report.FIGURES.values(), ()))
    said = "".join(map(words, figures))
    for results in RESULTS.values():  # accuracy, IoU and mean, in this order
        assert "".join(f"{results['test'][name]:.4f}" for name in ("accuracy", "iou", "mean")) in said


@pytest.mark.parametrize(("changes", "claim"), [({"iou": 0.99}, "thanks to rounding"), ({"map_class0": 0.1}, "lower")])
def test_it_is_not_built_where_the_run_does_not_bear_out_what_it_says(folder, changes, claim):
    with pytest.raises(RuntimeError, match=f"(?s)does not bear out.*{claim}"):
        report.build(put(folder, change(**changes)), DATE)


def test_the_report_follows_from_results_figures_and_date_alone(folder, tmp_path):
    results, figures = change(), shutil.copytree(folder, tmp_path / "figures")
    put(figures, results)
    first, again, later = (report.build(figures, DATE + datetime.timedelta(days)) for days in (0, 0, 1))
    assert first == again != later
    shutil.copy(figures / "detection_failures.png", figures / "detection_grid.png")
    other_figure = report.build(figures, DATE)
    results["loc"]["test"]["accuracy"] += 0.0123
    other_number = report.build(put(figures, results), DATE)
    prints = [report.stored_fingerprint(pdf) for pdf in (first, later, other_figure, other_number)]
    assert prints[0] == prints[1]  # a day later it is not outdated
    assert len(set(prints)) == len({first, other_figure, other_number}) == 3


def test_missing_results_and_figures_are_named(tmp_path, monkeypatch, capsys):
    target = tmp_path / "report.pdf"
    monkeypatch.setattr(report, "FIGURES_FOLDER", tmp_path)
    monkeypatch.setattr(report, "TARGET", target)
    for results, reason in (
        (None, r"results\.json: expected the results of a run, found none; run `make store` first"),
        ({"loc": RESULTS["loc"]}, "expected the results of both tasks, found none of detection's profile"),
        (RESULTS, r"localization_\w+\.png: expected a figure, found none"),
    ):
        if results:
            put(tmp_path, results)
        assert report.main() == 1
        assert re.search(reason, capsys.readouterr().err)
        assert not target.exists()


def test_networks_are_described_layer_by_layer():
    for network, summary in (
        (models.SimpleNet2, "c10 c20 P c35 (3×5) P c40+BN P c20 (5×4) P c6"),
        (models.CompactNet, "fold 2×2 c32 c32 c80/2 c80 c80"),
    ):
        assert report.layers_of(network()).startswith(summary)


def test_the_report_is_built_from_what_lies_there():
    expected = report.fingerprint(report.read_inputs(report.HOME / "figures"), report.HOME / "figures")
    assert report.stored_fingerprint(report.TARGET.read_bytes()) == expected, "outdated: run `make report`"
    assert pages(report.TARGET.read_bytes()) in PAGES
