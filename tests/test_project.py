"""The submission as it lies there: notebooks as one clean run left them, tables that say what the results say."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

import models
import training
from scripts import run
from training.results import load_published

HOME = Path(__file__).resolve().parent.parent
PUBLISHED = json.loads((HOME / "figures" / "results.json").read_text(encoding="utf-8"))
CELLS = {task: nbformat.read(HOME / f"{name}.ipynb", as_version=4).cells for task, name in training.NAMES.items()}
CODE = {task: [cell for cell in cells if cell.cell_type == "code"] for task, cells in CELLS.items()}
# What each module may import of this project's: what lies below it, in `training` the modules that are named before.
BELOW = {"data": {"data"}, "models": {"data"}, "utils": {"data"}, "training": {"data", "models", "utils"}}
BELOW |= {"predict": {"data", "models", "utils", "training"}}
BELOW |= {"scripts": {"data", "models", "utils", "training", "predict", "scripts"}}
TRAINING = ["settings", "loop", "runs", "results", "analysis", "progress", "study", "tables", "plots", "search", "lab"]
TRAINING += ["colab", "__init__"]
each_task = pytest.mark.parametrize("task", training.NAMES)


@each_task
def test_stored_outputs_are_of_one_clean_run(task):
    assert [cell.execution_count for cell in CODE[task]] == list(range(1, len(CODE[task]) + 1))
    for number, cell in enumerate(CODE[task], 1):
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {number} failed"
            assert output.get("name") != "stderr", f"cell {number} warns: {output.get('text')}"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert "\r" not in text, f"cell {number} left a progress line behind"
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|content|Users)/", text), f"cell {number}: {text}"


@each_task
def test_cells_are_short_and_what_they_print_is_compared(task):
    shown = [cell for cell in CODE[task] if cell.metadata.get("cellView") != "form"]  # the other is folded away
    assert all(len(cell.source.splitlines()) <= 15 for cell in shown)
    tagged = {tag: [cell for cell in CODE[task] if tag in cell.metadata.get("tags", [])]
              for tag in ("nbval-check-output", "published-output")}  # fmt: skip
    assert all(len(cells) >= 5 and all(cell.outputs for cell in cells) for cells in tagged.values())
    text = "".join(cell.source for cell in tagged["published-output"])
    pieces = ("compare_runs", "fit_table", "results_table", "study_table")
    assert [piece for piece in pieces if piece not in text] == []


@each_task
def test_contents_link_to_headings_that_exist(task):
    text = "\n".join(cell.source for cell in CELLS[task] if cell.cell_type == "markdown")
    headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line[:2] == "##"}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert {heading for heading in headings if heading[0].isdigit()} <= links <= headings


def test_published_figures_are_those_that_the_notebooks_save():
    saved = set()
    for task, cells in CODE.items():
        for node in ast.walk(ast.parse("\n".join(cell.source for cell in cells))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "save_figure":
                saved.add(f"{training.NAMES[task]}_{node.args[1].value}.png")
    assert {path.name for path in (HOME / "figures").glob("*.png")} == saved


@each_task
def test_results_are_complete_and_of_the_published_histories(task, monkeypatch):
    monkeypatch.chdir(HOME)
    found, networks = PUBLISHED[task], models.NETWORKS[task]
    assert training.PROFILES[found["profile"]].publishable
    assert set(found["networks"]) == {network.__name__ for network in networks}
    runs = [load_published(network, task) for network in networks]
    for each in runs:
        told = {name: getattr(each, name) for name in ("val", "train", "best_epoch", "n_train", "trained_on")}
        assert {name: found["networks"][each.name][name] for name in told} == told
        assert training.Settings(**found["networks"][each.name]["settings"]) == each.settings
        assert each.trained_on.keys() >= {"device", "python", "torch", "torchvision", "numpy"}
    assert found["selected"] == training.select_best(runs).name
    assert set(found["others"]) == set(found["networks"]) - {found["selected"]}
    (ours,) = [each for each in runs if each.name == found["selected"]]
    assert training.load_weights(ours.weights).validation == ours.val


def test_readme_and_notebooks_show_the_published_results(tmp_path):
    copy = Path(shutil.copy(HOME / "README.md", tmp_path))
    run.update_readme(copy, PUBLISHED)
    assert copy.read_text(encoding="utf-8") == (HOME / "README.md").read_text(encoding="utf-8")
    for task, cells in CODE.items():
        shown = [output.get("data", {}).get("text/markdown") for cell in cells for output in cell.outputs]
        assert training.headline(task, PUBLISHED[task]) in shown


def test_only_a_run_for_submission_is_stored(monkeypatch, capsys):
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setattr("sys.argv", ["run.py", "--store"])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "expected PROFILE to be one of full, long, published, found smoke" in capsys.readouterr().err


def test_what_files_say_of_other_files_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", (HOME / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (HOME / target).exists(), target
    assert "-r requirements.txt" in (HOME / "environment.yml").read_text(encoding="utf-8")


def test_modules_import_only_what_lies_below_them():
    files = [*HOME.glob("*.py"), *(file for name in BELOW for file in HOME.glob(f"{name}/*.py"))]
    for file in files:
        below = set(BELOW[file.stem if file.parent == HOME else file.parent.name])
        if file.parent.name == "training":
            below |= {f"training.{name}" for name in TRAINING[: TRAINING.index(file.stem)]}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            one = [getattr(node, "module", None) or ""]  # of `from ... import`
            if one == ["training"] and file.parent.name == "training":
                one = [f"training.{each.name}" for each in node.names]
            for name in [each.name for each in node.names] if isinstance(node, ast.Import) else one:
                assert name.split(".")[0] not in BELOW or {name, name.split(".")[0]} & below, (file.name, name)
