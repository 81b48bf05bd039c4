"""Machines of all kinds: other locales, read-only folders, other environments, an interruption."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
import torch
from cases import HOME

import data
import training
from scripts import run
from scripts import test as command
from training import study


@pytest.mark.skipif(not str(HOME).isascii(), reason="jsonschema's rpds, which nbformat needs, fails here")
def test_a_locale_without_our_characters_is_enough():
    code = "import training as t; t.progress.forgive_output(); print('3\\u00d73', bool(t.published_results('loc')))"
    variables = {**os.environ, "PYTHONIOENCODING": "", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=HOME, env=variables).split() == [b"3?3", b"True"]


# Nobody can write below a file, root neither.
RUNS = "RUNS_DIR", "README.md/runs", "README.md.runs: runs cannot be kept there, .* RUNS_DIR names another folder"
SOURCE = "DATA_SOURCE", "imagenet", "DATA_SOURCE: expected one of course, mnist, digits, found 'imagenet'"
IMAGES = "DATA_DIR", "mistyped", "DATA_DIR: expected a folder with .*, found none of them in mistyped"
ADDRESS = r"STUDY_DATABASE: expected an address such as ((?!secret).)* %40 %3A ((?!secret).)*Error"


@pytest.mark.parametrize(("script", "name", "value", "said"), [
    ("run --store", "PROFILE", "tiny", "PROFILE: expected one of full, .*, found 'tiny'"),
    ("run --store", "PROFILE", "smoke", "--store: expected PROFILE to be full, long or published, found smoke"),
    ("run", *RUNS), ("study seeds", *RUNS), ("search", *RUNS),
    ("study seeds", *SOURCE), ("search", *SOURCE), ("study seeds", *IMAGES), ("search", *IMAGES),
    ("run detection", *IMAGES),  # the notebook says it, and run.py in another line where
    ("search", "STUDY_DATABASE", "me:secret@host", ADDRESS),
    ("search", "STUDY_DATABASE", "postgresql+psycopg://me:my@secret@host/a", ADDRESS),
])  # fmt: skip
def test_a_wrong_setting_is_said_in_one_line_before_anything_runs(script, name, value, said, tmp_path, monkeypatch):
    script, *arguments = script.split()
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    monkeypatch.setattr(study, "STUDIES", tmp_path / "studies.json")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match=rf"^.*{said}(\n.* shows where, and all before)?$"):
        runpy.run_path(HOME / "scripts" / f"{script}.py", run_name="__main__")


def test_an_interrupted_script_says_so_in_one_line():
    with pytest.raises(SystemExit, match=r"^Stopped\. What is finished is kept$"):
        training.guard(Mock(side_effect=KeyboardInterrupt))


@pytest.mark.parametrize("option", [[], ["--store"]])
def test_only_store_publishes_also_where_a_gpu_chooses_the_full_profile(option, tmp_path, monkeypatch):
    def execute(path, copy):
        folders.append((os.environ["STORE"], training.choose_profile().outcome_folder("weights")))
        raise KeyboardInterrupt

    folders = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(sys, "argv", ["run.py", *option])
    monkeypatch.setenv("STORE", "from before")
    assert run.main().startswith("localization.ipynb was stopped")
    assert folders == [("yes", Path("weights")) if option else ("", tmp_path / "runs" / "full" / "weights")]


@pytest.mark.parametrize(("pin", "status"), [("torch==2.0.1", 0), ("torch==2.0.2", 1), ("lacking==1.0", 1)])
def test_an_environment_is_used_that_has_every_package_in_its_version(pin, status, tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text(f"# comment\n{pin}  # why\n", encoding="utf-8")
    version = Mock(side_effect=["2.0.1+cpu"] if "torch" in pin else command.metadata.PackageNotFoundError)
    monkeypatch.setattr(command.metadata, "version", version)
    monkeypatch.setattr(command, "HOME", tmp_path)
    monkeypatch.setattr(sys, "argv", ["test.py", "--installed"])
    assert command.main() == status


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize("lacking", [0, 1])
def test_make_takes_the_active_environment_else_installs_the_requirements(name, lacking, tmp_path):
    shutil.copy(HOME / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    active = tmp_path / "active one" / "bin" / "python"
    active.parent.mkdir(parents=True)
    active.write_text(f"#!/bin/sh\nexit {lacking}\n", encoding="utf-8")
    active.chmod(0o755)
    variables = {"PATH": os.environ["PATH"], name: str(active.parent.parent)}
    asked = ["make", "-n", "run", "NOTEBOOK=detection", "TORCH=cpu"]
    planned = subprocess.check_output(asked, cwd=tmp_path, env=variables, encoding="utf-8")
    assert ("-r requirements.txt" in planned) == ("https://download.pytorch.org/whl/cpu" in planned) == bool(lacking)
    assert f'"{".venv/bin/python" if lacking else active}" scripts/run.py detection' in planned


@pytest.mark.parametrize(("bad", "named", "profiles"), [
    ("--check", "ruff .*, ruff detection.ipynb", ["mine"] * 3),
    ("--nbval-lax", "pytest localization.ipynb, pytest detection.ipynb", ["mine"] * 4 + ["smoke"] * 2),
    ("--nbval", "pytest localization.ipynb, pytest detection.ipynb", ["mine"] * 4 + ["published"] * 2 + ["smoke"] * 2),
])  # fmt: skip
def test_what_fails_is_named_and_nothing_runs_after_bad_style(bad, named, profiles, monkeypatch, capsys):
    """Notebooks are compared with the published run where its images are, else that is said."""
    ran = Mock(side_effect=lambda arguments, **more: subprocess.CompletedProcess(arguments, int(bad in arguments)))
    for name in ("PROFILE", "STORE"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(data, "load", Mock(side_effect=None if "published" in profiles else data.DataError("no MNIST")))
    assert re.fullmatch(f"Failed: {named}", command.main())
    assert ("not compared with the published run: no MNIST" in capsys.readouterr().out) == (bad == "--nbval-lax")
    variables = [call.kwargs["env"] for call in ran.call_args_list]
    assert sorted(each["PROFILE"] for each in variables) == profiles
    assert {each["STORE"] for each in variables} == {""}  # no test publishes anything


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize(("source", "lines", "said"), [
    ("os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", 1, "detection.ipynb was stopped, .* goes on"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 1, "detection.ipynb was stopped, or its kernel died"),
    ("1 / 0", 2, "detection.ipynb failed, ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_one_notebook_runs_alone_and_its_end_is_said(source, lines, said, tmp_path, monkeypatch, capfd):
    shown = "import os, signal, time\nfrom IPython.display import Image\nprint(os.getpid())\nImage(b'', alt='1 < 2')"
    cells = [shown, source, "print('never')"]
    cells = [nbformat.v4.new_code_cell(cell, outputs=[], execution_count=9) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "detection.ipynb")
    monkeypatch.setattr(run, "HOME", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "detection"])
    monkeypatch.setenv("PROFILE", "smoke")
    ended = run.main().splitlines()
    assert re.match(said, ended[0])
    assert len(ended) == lines
    assert str(tmp_path / "runs") in ended[-1]
    assert capfd.readouterr().err == ""  # no warning of the kernel's either
    copy = nbformat.read(tmp_path / "runs" / "smoke" / "detection.ipynb", as_version=4)
    assert copy.cells[2].execution_count is None  # what did not run does not look as if it had
    assert 'alt="1 &lt; 2"' in (tmp_path / "runs" / "smoke" / "detection.html").read_text(encoding="utf-8")
    with pytest.raises(ProcessLookupError):
        os.kill(int(copy.cells[0].outputs[0].text), 0)
