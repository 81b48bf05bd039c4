"""Machines of all kinds: other locales, proxies, read-only folders, long names, other environments, an interruption."""

import ast
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import nbformat
import pytest
from torchvision.datasets import MNIST

import data
import training
from data import files, sources
from scripts import installed, run
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


@pytest.mark.skipif(
    not str(HOME).isascii(), reason="in such a locale jsonschema's rpds, which nbformat needs, fails here"
)
def test_a_locale_without_our_characters_is_enough(tmp_path):
    copy = shutil.copy(HOME / "README.md", tmp_path)
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    ascii_only.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", IN_ASCII, copy], cwd=HOME, env=ascii_only, capture_output=True)
    assert (done.returncode, done.stdout.split()) == (0, [b"3?3", b"True"]), done.stderr.decode()


# --- MNIST
@pytest.fixture
def mirror(monkeypatch):
    """MNIST's server, which holds small files of the right form, and is to be reached through a proxy alone: the list
    of what it was asked for, and its files, which may be changed."""
    asked, packed = [], {}
    for name, _ in MNIST.resources:
        count = 60_000 if name.startswith("train") else 10_000
        shape = (count, 28, 28) if "images" in name else (count,)
        head = bytes((0, 0, 8, len(shape))) + b"".join(length.to_bytes(4, "big") for length in shape)
        packed[name] = gzip.compress(head + bytes(count * (784 if len(shape) > 1 else 1)), 1)

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = packed.get(self.path.removeprefix("http://mnist.invalid/"))
            self.send_response(404 if content is None else 200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET
        log_message = print

    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", ["http://elsewhere.invalid/", "http://mnist.invalid/"])
    monkeypatch.setattr(urllib.request, "_opener", None)  # which would remember the proxies before
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked, packed
        server.shutdown()


def test_mnist_comes_through_a_proxy_and_damage_is_mended_from_what_is_nearest(mirror, tmp_path):
    (asked, packed), told = mirror, []
    assert sources.mnist_is_there(tmp_path, told.append)
    whole = {path: path.read_bytes() for path in sources.mnist_files(tmp_path)}
    asked.clear()
    for path, content in [*whole.items()][2:]:  # the smaller ones
        path.with_name(f"{path.name}.gz").write_bytes(packed[f"{path.name}.gz"])
        for damaged in (b"", content[:-1], b"x" + content[1:], content[:-1] + b"\n"):
            if damaged[-1:] != b"\n" or "labels" in path.name:  # a pixel may have any value
                path.write_bytes(damaged)
                with pytest.raises(data.DataError, match=path.name):
                    sources.load_mnist(tmp_path)
                assert sources.mnist_is_there(tmp_path, told.append)
                assert path.read_bytes() == content
    assert asked == told == []
    path.with_name(f"{path.name}.gz").write_bytes(b"packed, cut off")
    path.unlink()
    assert sources.mnist_is_there(tmp_path, told.append)
    assert (path.read_bytes(), told) == (content, [])


def test_damaged_files_without_a_way_to_others_are_said_and_the_next_source_used(mirror, tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_SOURCE", raising=False)
    _, packed = mirror
    (first, *_) = sources.mnist_files(tmp_path)
    first.parent.mkdir(parents=True)
    first.write_bytes(b"half")
    packed[f"{first.name}.gz"] = b"a web page"
    for reason in ("no mirror has it whole", "no download, HTTP Error 404: Not Found"):
        told = []
        assert data.load("loc", None, (4, 2, 2), tmp_path, told.append).source == "digits"
        assert told[0] == f"data: MNIST's files are damaged, and cannot be had: {first.name}.gz: {reason}"
        assert "scikit-learn's digits" in told[1]
        packed.pop(f"{first.name}.gz", None)
    with pytest.raises(data.DataError, match="no MNIST files, or damaged ones"):
        data.load("loc", "mnist", (4, 2, 2), tmp_path, told.append)


# --- folders
def test_a_folder_that_cannot_hold_runs_is_refused_with_the_way_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()  # nobody can write below it, root neither
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "file" / "runs"))
    with pytest.raises(files.SaveError, match=r"file.runs: runs cannot be kept there, .* RUNS_DIR names another"):
        training.open_lab("loc")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit):
        run.main()
    assert "RUNS_DIR names another folder" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the project's own folder is read-only
    assert training.PROFILES["full"].outcome_folder("figures") == tmp_path / "file" / "runs" / "full" / "figures"


def test_made_images_are_used_where_they_cannot_be_kept(tmp_path):
    (tmp_path / "made").touch()
    told = []
    assert len(data.load("det", "digits", (4, 2, 2), tmp_path, told.append).train) == 4
    assert [text for text in told if "not kept" in text] == told[1:]
    assert len(told) == 2


@pytest.mark.skipif(os.name == "nt", reason="there are no such sockets")
def test_sockets_have_short_names_or_there_are_none(tmp_path, monkeypatch):
    deep = tmp_path / ("é" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run.sockets_folder() as folder:
        assert os.path.dirname(folder) == "/tmp"
    monkeypatch.setattr(run, "LONGEST", 3)
    assert run.sockets_folder() is None


# --- environments
def test_an_environment_is_used_that_has_every_package_in_its_version(monkeypatch):
    found = {"torch": "2.0.1+cpu", "psycopg": "3.1"}
    monkeypatch.setattr(installed.metadata, "version", lambda name: found[name])
    pins = {"torch==2.0.1": True, "torch==2.0.2": False, "psycopg[binary]==3.1": True}
    assert {pin: installed.is_there(pin) for pin in pins} == pins


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_the_active_environment_else_installs_the_requirements(tmp_path):
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    shutil.copy(HOME / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    active = tmp_path / "active one" / "bin" / "python"
    active.parent.mkdir(parents=True)

    def plan(*arguments, **environment):
        plan = subprocess.run(
            ["make", "-n", "run", *arguments], cwd=tmp_path, env=given | environment, capture_output=True, check=True
        )
        return plan.stdout.decode()

    for status in (0, 1):
        active.write_text(f"#!/bin/sh\nexit {status}\n", encoding="utf-8")
        active.chmod(0o755)
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            found = plan("NOTEBOOK=detection", **{name: str(active.parent.parent)})
            assert ("pip install" in found) == bool(status)
            assert f'"{".venv/bin/python" if status else active}" scripts/run.py detection' in found
    found = plan("TORCH=cpu", "PYTHON=python3.12", VIRTUAL_ENV=str(active.parent.parent))
    assert "python3.12 -m venv .venv" in found
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in found


# --- commands
def test_tests_stop_at_the_first_that_fails(monkeypatch):
    ran = []

    def fail(arguments, env, **more):
        ran.append((arguments[1:], env.get("PROFILE")))
        return subprocess.CompletedProcess(arguments, 3 if "--nbval-lax" in arguments else 0)

    monkeypatch.delenv("PROFILE", raising=False)
    monkeypatch.setattr(subprocess, "run", fail)
    assert command.main() == 3
    assert [arguments for arguments, _ in ran] == command.COMMANDS[:5]
    assert [profile for _, profile in ran] == [None] * 4 + ["smoke"]
    assert set(command.NOTEBOOKS) == set(run.NOTEBOOKS.values())


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_one_notebook_runs_alone_and_an_interruption_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    stop = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"  # as Ctrl-C does
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(stop)]), tmp_path / "detection.ipynb")
    monkeypatch.setattr(run, "HOME", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "detection"])
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    assert run.main() == 130
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "goes on" in line]
    assert said.startswith("detection.ipynb was stopped")
    assert said.endswith(f"are kept in {tmp_path / 'runs'}")
