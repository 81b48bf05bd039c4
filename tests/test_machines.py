"""Machines of all kinds: other locales, proxies, read-only folders, other environments, an interruption."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

import data
import training
from scripts import run
from scripts import test as command

HOME = Path(__file__).resolve().parent.parent
IN_ASCII = """
import pathlib, sys
sys.path.insert(0, "")
from scripts import run
run.training.forgive_output()
run.fill_in(pathlib.Path(sys.argv[1]), "results", "x")
print("3\\u00d73", run.training.published_results("loc") is not None)
"""


# --- locales
def test_text_is_read_and_written_with_its_encoding_named():
    for file in [*HOME.glob("*.py"), *HOME.glob("*/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name, named = ast.unparse(node.func), {each.arg for each in node.keywords}
                modes = [getattr(each, "value", "b") for each in node.args[1:2]] or ["r"]  # or a variable
                text = name.endswith((".read_text", ".write_text")) or (name == "open" and "b" not in modes[0])
                text |= bool(named & {"text", "universal_newlines"}) and name.startswith("subprocess.")
                assert "encoding" in named or not text, f"{file}: line {node.lineno}"


@pytest.mark.skipif(not str(HOME).isascii(), reason="jsonschema's rpds, which nbformat needs, fails here")
def test_a_locale_without_our_characters_is_enough(tmp_path):
    copy = shutil.copy(HOME / "README.md", tmp_path)
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    ascii_only.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", IN_ASCII, copy], cwd=HOME, env=ascii_only, capture_output=True)
    assert (done.returncode, done.stdout.split()) == (0, [b"3?3", b"True"]), done.stderr.decode()


# --- settings
def start(monkeypatch, runs, *arguments, **variables):
    """Run scripts/run.py with these arguments and environment variables, and none of the surroundings' that matter."""
    empty = dict.fromkeys(("PROFILE", "DATA_SOURCE", "DATA_DIR", "STORE"), "")
    for name, value in {**empty, "RUNS_DIR": str(runs), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    return run.main()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PROFILE", "tiny", "PROFILE: expected one of full, .*, found 'tiny'"),
        ("DATA_SOURCE", "web", "DATA_SOURCE: expected one of course, mnist, digits, found 'web'"),
        ("DATA_DIR", "{}", "DATA_DIR: expected a folder with the course's files, found none"),
        ("RUNS_DIR", "{}/file/runs", "file.runs: runs cannot be kept there, .* RUNS_DIR names another folder"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_before_anything_runs(name, value, said, tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # nobody can write below it, root neither
    monkeypatch.setattr(run, "execute", lambda *paths: pytest.fail("a notebook runs"))
    with pytest.raises(SystemExit, match=said) as stop:
        training.guard(lambda: start(monkeypatch, tmp_path, **{name: value.format(tmp_path)}))
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("option", [[], ["--store"]])
def test_only_store_publishes_also_where_a_gpu_chooses_the_full_profile(option, tmp_path, monkeypatch):
    def execute(path, copy):
        folders.append((os.environ["STORE"], training.choose_profile().outcome_folder("weights")))
        raise KeyboardInterrupt

    folders = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "execute", execute)
    assert start(monkeypatch, tmp_path, *option, STORE="from before") == 130
    assert folders == [("yes", Path("weights")) if option else ("", tmp_path / "full" / "weights")]


# --- environments
def test_an_environment_is_used_that_has_every_package_in_its_version(monkeypatch):
    versions = {"torch": "2.0.1+cpu", "psycopg": "3.1"}
    monkeypatch.setattr(command.metadata, "version", lambda name: versions[name])
    pins = {"torch==2.0.1": True, "torch==2.0.2": False, "psycopg[binary]==3.1": True}
    assert {pin: command.is_installed(pin) for pin in pins} == pins


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_the_active_environment_else_installs_the_requirements(tmp_path):
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    shutil.copy(HOME / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    active = tmp_path / "active one" / "bin" / "python"
    active.parent.mkdir(parents=True)

    def plan(*arguments, **variables):
        options = {"cwd": tmp_path, "env": given | variables, "encoding": "utf-8"}
        return subprocess.check_output(["make", "-n", "run", *arguments], **options)

    for lacking, name in itertools.product((0, 1), ("VIRTUAL_ENV", "CONDA_PREFIX")):
        active.write_text(f"#!/bin/sh\nexit {lacking}\n", encoding="utf-8")
        active.chmod(0o755)
        planned = plan("NOTEBOOK=detection", **{name: str(active.parent.parent)})
        assert ("pip install" in planned) == bool(lacking)
        assert f'"{".venv/bin/python" if lacking else active}" scripts/run.py detection' in planned
    planned = plan("TORCH=cpu", "PYTHON=python3.12", VIRTUAL_ENV=str(active.parent.parent))
    assert re.search(
        "python3.12 -m venv .venv\n.*--extra-index-url https://download.pytorch.org/whl/cpu", planned, re.S
    )


# --- commands
def test_tests_stop_at_the_first_that_fails(monkeypatch):
    ran = []

    def fail(arguments, env, **more):
        ran.append((arguments[1:], env.get("PROFILE"), env.get("STORE")))
        return subprocess.CompletedProcess(arguments, 3 if "--nbval-lax" in arguments else 0)

    monkeypatch.delenv("PROFILE", raising=False)
    monkeypatch.setenv("STORE", "yes")
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setattr(subprocess, "run", fail)
    assert command.main() == 3
    assert ran == [(each, None, "yes") for each in command.COMMANDS[:4]] + [(command.COMMANDS[4], "smoke", "")]
    assert {f"{name}.ipynb" for name in training.NAMES.values()} == set(command.NOTEBOOKS)


def test_the_published_run_is_compared_where_its_images_are_and_else_it_is_said(tmp_path, monkeypatch, capsys):
    def compare(arguments, env, **more):
        cells = nbformat.read(HOME / arguments[-1], as_version=4).cells
        counts.append(sum("nbval-check-output" in cell.metadata.get("tags", []) for cell in cells))
        assert (env["PROFILE"], env["DATA_SOURCE"], env["STORE"]) == ("published", "course", "")
        return subprocess.CompletedProcess(arguments, 3)

    counts = []
    monkeypatch.chdir(HOME)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(training, "published_results", lambda task: {"selected": "CompactNet", "source": "course"})
    monkeypatch.setattr(subprocess, "run", compare)
    assert [command.compare_published("loc", must) for must in (False, True)] == [0, 1]
    skipped, failed = capsys.readouterr().out.splitlines()
    assert skipped.startswith("localization.ipynb: not compared with the published run: DATA_DIR: expected a folder")
    assert int(skipped.removeprefix(failed).split()[1]) > 5  # cells that any run compares
    monkeypatch.setattr(data, "load", lambda *arguments, **options: None)
    assert command.compare_published("loc", True) == 3
    assert capsys.readouterr().out == f"localization.ipynb: {counts[0]} cells compared with the published run\n"
    assert counts[0] > 10
    assert not list(HOME.glob("published-*"))


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", 130, "detection.ipynb was stopped, .* goes on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 130, "detection.ipynb was stopped, or its kernel died"),
        ("1 / 0", 1, "detection.ipynb failed, ZeroDivisionError: division by zero"),
    ],
)
def test_one_notebook_runs_alone_and_its_end_is_said(source, status, said, tmp_path, monkeypatch, capfd):
    cells = ["import os, signal, time\nprint(os.getpid())", source, "print('never')"]
    cells = [nbformat.v4.new_code_cell(cell, outputs=[], execution_count=9) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "detection.ipynb")
    monkeypatch.setattr(run, "HOME", tmp_path)
    assert start(monkeypatch, tmp_path / "runs", "detection", PROFILE="smoke") == status
    lines = capfd.readouterr().err.splitlines()  # the kernel's as well, which would warn
    assert re.match(said, lines[0])
    assert len(lines) == (2 if status == 1 else 1)
    assert str(tmp_path / "runs") in lines[-1]
    copy = nbformat.read(tmp_path / "runs" / "smoke" / "detection.ipynb", as_version=4)
    assert copy.cells[2].execution_count is None  # what did not run does not look as if it had
    assert copy.metadata.language_info.version == sys.version.split()[0]
    assert (tmp_path / "runs" / "smoke" / "detection.html").is_file()
    with pytest.raises(ProcessLookupError):
        os.kill(int(copy.cells[0].outputs[0].text), 0)
