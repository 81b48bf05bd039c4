"""The submission as it lies there: notebooks as one clean run left them, tables that say what the results say."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import models
import training
import utils
from scripts import check_published

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = {"loc": HOME / "localization.ipynb", "det": HOME / "detection.ipynb"}
PUBLISHED = json.loads((HOME / "figures" / "results.json").read_text())


def read(task):
    return nbformat.read(NOTEBOOKS[task], as_version=4)


def code_cells(task):
    return [cell for cell in read(task).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("task", NOTEBOOKS)
def test_stored_outputs_are_of_one_clean_run(task):
    cells = code_cells(task)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for number, cell in enumerate(cells, 1):
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {number} failed"
            assert output.get("name") != "stderr", f"cell {number} warns: {output.get('text')}"
            text = output.get("text", "") + "".join(map(str, output.get("data", {}).get("text/plain", "")))
            assert "\r" not in text, f"cell {number} left a progress line behind"
            found = re.search(r"(?<![\w.])/(home|root|tmp|work|content|Users)/", text)
            assert not found, f"cell {number} names a machine's folder"


@pytest.mark.parametrize("task", NOTEBOOKS)
def test_cells_are_short_and_checked_ones_are_tagged(task):
    cells = code_cells(task)
    assert all(len(cell.source.splitlines()) <= 25 for cell in cells)
    tagged = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(tagged) >= 5
    assert all(cell.outputs for cell in tagged)  # an empty output would be compared with nothing


@pytest.mark.parametrize("task", NOTEBOOKS)
def test_contents_link_to_headings_that_exist(task):
    cells = [cell.source for cell in read(task).cells if cell.cell_type == "markdown"]
    headings = {line.lstrip("# ").replace(" ", "-") for text in cells for line in text.splitlines() if line[:2] == "##"}
    links = set(re.findall(r"\]\(#([^)]*)\)", "\n".join(cells)))
    assert links <= headings
    assert {heading for heading in headings if heading[0].isdigit()} <= links


@pytest.mark.parametrize("task", PUBLISHED)
def test_every_figure_that_a_notebook_saves_is_published(task):
    names = re.findall(r'figures,\s*"(\w+)"', "\n".join(cell.source for cell in code_cells(task)))
    assert len(names) >= 10
    assert [name for name in names if not (HOME / "figures" / f"{name}.png").is_file()] == []


def test_results_are_complete():
    results = PUBLISHED
    networks = {"loc": models.LOCALIZERS, "det": models.DETECTORS}
    for task, found in results.items():
        assert found["profile"] in training.PROFILES
        assert training.PROFILES[found["profile"]].published
        assert set(found["networks"]) == {network.__name__ for network in networks[task]}
        best = max(found["networks"].items(), key=lambda item: item[1]["val"]["mean"])[0]
        assert found["selected"] == best
        reference = [network.__name__ for network in networks[task][:-1]]
        best = max(reference, key=lambda name: found["networks"][name]["val"]["mean"])
        assert found["reference"]["network"] == best
        assert {row["network"] for row in found["study"]["comparison"]} == set(found["networks"])
        assert {"device", "python", "torch", "torchvision", "numpy"} <= set(found["versions"])
    assert set(results) == set(NOTEBOOKS)


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_histories_are_those_of_the_results(task):
    for name, found in PUBLISHED[task]["networks"].items():
        run = training.load_published(getattr(models, name), task)
        assert (run.val, run.train) == (found["val"], found["train"])
        assert (run.best_epoch, run.pictures) == (found["best_epoch"], found["pictures"])
        assert dataclasses.asdict(run.settings) == found["settings"]


@pytest.mark.parametrize("task", PUBLISHED)
def test_cells_that_print_results_are_compared_with_the_published_run(task):
    tagged = [cell for cell in code_cells(task) if check_published.TAG in cell.metadata.get("tags", [])]
    assert len(tagged) >= 6
    text = "".join(cell.source for cell in tagged)
    for piece in ("compare_runs", "print_scores(best", "print_scores(baseline", "study_tables", "diagnose"):
        assert piece in text


def test_readme_and_notebooks_show_the_published_results():
    results = PUBLISHED
    readme = (HOME / "README.md").read_text()
    for task, found in results.items():
        assert utils.headline(found, task) in readme
        shown = [output.get("data", {}).get("text/markdown") for cell in code_cells(task) for output in cell.outputs]
        assert utils.headline(found, task) in shown


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (HOME / "README.md").read_text()):
        assert target.startswith("http") or (HOME / target).exists(), target


def test_dependencies_are_named_once():
    assert "-r requirements.txt" in (HOME / "environment.yml").read_text()
    lines = (HOME / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("models.py", set()),
        ("data", {"data"}),
        ("utils.py", {"data"}),
        ("training.py", {"utils", "data"}),
        ("predict.py", {"models", "utils", "training", "data"}),
    ],
)
def test_modules_import_only_what_lies_below_them(module, allowed):
    files = sorted((HOME / module).glob("*.py")) if (HOME / module).is_dir() else [HOME / module]
    ours = {"models", "utils", "training", "predict", "data", "scripts"}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} & ours <= allowed, file.name


def test_unknown_profile_is_refused_in_one_line():
    found = subprocess.run(
        [sys.executable, "scripts/run.py"], cwd=HOME, env={"PROFILE": "huge"}, capture_output=True, text=True
    )
    assert found.returncode != 0
    assert "PROFILE: expected one of full, long, quick, published, smoke, found 'huge'" in found.stderr
