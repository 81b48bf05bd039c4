"""The report: built from results and figures alone, complete, and not older than what it is built from."""

import datetime
import json
import re
import shutil

from cases import RESULTS

from data import files
from scripts import report

DATE = datetime.date(2024, 5, 1)


def stored_fingerprint(pdf):  # among the report's keywords
    return re.search(rb"inputs-([0-9a-f]{64})", pdf)[1].decode()


def test_it_shows_all_figures_and_the_scores_in_eight_pages():
    compiler = report.compiler(report.FIGURES, DATE)
    images = json.loads(compiler.query("image", "alt"))
    assert sorted(images) == sorted(f"{task} {name}" for task, names in report.SHOWN.items() for name in names)
    table = "|".join(re.findall(r'"text":\s*"([^"]*)"', compiler.query("<headline>")))
    for results in RESULTS.values():
        scores = "|".join(f"{results['test'][name]:.3f}" for name in ("accuracy", "iou", "mean"))
        assert f"|accuracy|IoU|mean|mAP|mAP.50|mAP.75|{results['selected']}|{scores}|" in table
    assert re.search(rb"/Type/Pages/Count (\d+)", report.build(report.FIGURES, DATE))[1] == b"8"


def test_it_follows_from_results_figures_and_date_alone(tmp_path):
    figures = shutil.copytree(report.FIGURES, tmp_path / "figures")
    first, again, later = (report.build(figures, DATE + datetime.timedelta(days)) for days in (0, 0, 1))
    assert first == again != later
    shutil.copy(figures / "detection_failures.png", figures / "detection_grid.png")
    other_figure = report.build(figures, DATE)
    test = {**RESULTS["loc"]["test"], "accuracy": 0.5}
    files.save_json(figures / "results.json", {**RESULTS, "loc": {**RESULTS["loc"], "test": test}})
    other_number = report.build(figures, DATE)
    prints = [stored_fingerprint(pdf) for pdf in (first, later, other_figure, other_number)]
    assert prints[0] == prints[1]  # a day later it is not outdated
    assert len(set(prints)) == len({first, other_figure, other_number}) == 3


def test_the_stored_report_is_built_from_what_lies_there():
    expected = report.fingerprint(report.read_inputs(report.FIGURES), report.FIGURES)
    assert stored_fingerprint(report.TARGET.read_bytes()) == expected, "outdated: run `make report`"
