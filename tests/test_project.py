"""The submission as it lies there: notebooks as one clean run left them, tables that say what the results say."""

import re
import shutil

from cases import HOME, NOTEBOOKS, RESULTS, both_tasks

import models
import training
from scripts import run
from training.results import load_published

CODE = {task: [cell for cell in each.cells if cell.cell_type == "code"] for task, each in NOTEBOOKS.items()}
LAYERS = {"data": 0, "models": 1, "utils": 1, "training": 2, "predict": 3, "scripts": 4}  # import what lies below


@both_tasks
def test_stored_outputs_are_of_one_clean_run(task):
    assert [cell.execution_count for cell in CODE[task]] == list(range(1, len(CODE[task]) + 1))
    for output in (output for cell in CODE[task] for output in cell.outputs):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert output.output_type != "error", text
        assert output.get("name") != "stderr", text
        assert not re.search(r"\r|(?<![\w.])/(home|root|tmp|work|content|Users)/", text), text  # progress, paths


@both_tasks
def test_cells_are_short_compared_in_every_run_and_of_one_task_and_contents_link_to_headings(task):
    shown = [cell for cell in CODE[task] if cell.metadata.get("cellView") != "form"]  # the other is folded away
    assert all(len(cell.source.splitlines()) <= 15 for cell in shown)
    assert sum(bool(cell.outputs) and "nbval-check-output" in cell.metadata.get("tags", []) for cell in shown) >= 5
    assert set(re.findall(r'"(loc|det)"', "".join(cell.source for cell in shown))) == {task}  # it loads no other images
    text = "\n".join(cell.source for cell in NOTEBOOKS[task].cells if cell.cell_type == "markdown")
    headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line[:2] == "##"}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert {heading for heading in headings if heading[0].isdigit()} <= links <= headings


@both_tasks
def test_results_are_complete_and_of_the_published_histories(task, monkeypatch):
    monkeypatch.chdir(HOME)
    results, runs = RESULTS[task], [load_published(network, task) for network in models.NETWORKS[task]]
    assert training.PROFILES[results["profile"]].publishable
    assert set(results["networks"]) == {run.name for run in runs}
    for each in runs:
        told = {name: getattr(each, name) for name in ("val", "train", "best_epoch", "n_train", "trained_on")}
        assert {name: results["networks"][each.name][name] for name in told} == told
        assert training.Settings(**results["networks"][each.name]["settings"]) == each.settings
        assert each.trained_on.keys() >= {"device", "python", "torch", "torchvision", "numpy"}
    ours = training.select_best(runs)
    assert results["selected"] == ours.name
    assert set(results["others"]) == set(results["networks"]) - {ours.name}


def test_publishing_again_changes_nothing(tmp_path):
    """So the README and the heads of the notebooks show the published results."""
    names = ["README.md", "data/README.md", *(f"{name}.ipynb" for name in training.NAMES.values())]
    for name in [*names, *(f"figures/{name}_edges.png" for name in training.NAMES.values())]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HOME / name, tmp_path / name)
    run.publish({task: HOME / f"{name}.ipynb" for task, name in training.NAMES.items()}, RESULTS, tmp_path)
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (HOME / name).read_text(encoding="utf-8")


def test_what_files_say_of_other_files_is_there():
    for file in (HOME / "README.md", HOME / "data" / "README.md", *HOME.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert target.startswith("http") or (file.parent / target).exists(), (file.name, target)
    assert "-r requirements.txt" in (HOME / "environment.yml").read_text(encoding="utf-8")


def test_modules_import_only_what_lies_below_them():
    for name, layer in LAYERS.items():
        for file in (*HOME.glob(f"{name}.py"), *HOME.glob(f"{name}/*.py")):
            for imported in re.findall(r"(?m)^ *(?:from|import) (\w+)", file.read_text(encoding="utf-8")):
                assert imported == name or LAYERS.get(imported, -1) < layer, (file.name, imported)
