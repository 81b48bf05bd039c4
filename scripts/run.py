"""Runs the notebooks from top to bottom with a live progress line, and prints the results.

python scripts/run.py                 executed copies and HTML go under the runs folder
python scripts/run.py localization    one notebook alone
python scripts/run.py --store         publishes: the notebooks get the outputs, figures/ and others what comes of it
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import training  # noqa: E402  (found only once the project's folder is on the path)
from data.files import SaveError, atomic_write, load_json  # noqa: E402
from training import tables  # noqa: E402

NOTEBOOKS = {task: f"{name}.ipynb" for task, name in training.NAMES.items()}
# In HTML nothing can be folded away, as the cell is that gets the modules on Colab.
WITHOUT = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})
LONGEST = 80  # bytes of a folder's name, so that with a socket's it is no longer than any system allows


class LiveClient(NotebookClient):
    """Executes a notebook and shows in the terminal which part of it runs and how training goes."""

    live = sys.stdout.isatty()
    cleaning: asyncio.Future | None = None

    def show(self, text: str) -> None:
        """Rewrite the live line; where there is no terminal, print only what is worth a line of its own."""
        if self.live:
            print(f"\r\x1b[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def process_message(self, msg, cell, cell_index):
        """Pass a kernel's message on to nbclient, and show what it says of the progress."""
        if msg["msg_type"] == "update_display_data":
            text = msg["content"]["data"].get("text/plain", "")
            if "\n" not in text and not text.startswith("<"):
                self.show(text)
        return super().process_message(msg, cell, cell_index)

    async def _async_cleanup_kernel(self) -> None:
        """As nbclient's, but once: after Ctrl-C it calls this twice, and the second time would fail."""
        self.cleaning = self.cleaning or asyncio.ensure_future(super()._async_cleanup_kernel())
        await self.cleaning


def sockets_folder() -> tempfile.TemporaryDirectory | None:
    """A new folder for the sockets to a kernel; None where the system has no such sockets, or no folder whose name is
    short enough."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(parent)) <= LONGEST and os.access(parent, os.W_OK):
            return tempfile.TemporaryDirectory(prefix="kernel-", dir=parent)
    return None


def execute(path: Path, store: bool, folder: Path) -> Path:
    """Run one notebook; write the executed copy and its HTML into the folder, also where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    # Over TCP, which is the default, the kernel warns that it is not encrypted.
    sockets = sockets_folder()
    local = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets.name}/ipc"}} if sockets else {})
    # A kernel that is asked to stop, and not killed, reports the interruption in twenty lines.
    options = {"kernel_name": "python3", "record_timing": False, "shutdown_kernel": "immediate", "config": local}
    client = LiveClient(notebook, timeout=None, **options)
    client.resources = {"metadata": {"path": str(HOME)}}
    heading = {}
    for number, cell in enumerate(notebook.cells):
        titles = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
        heading[number] = titles[-1] if cell.cell_type == "markdown" and titles else heading.get(number - 1, "")
    last = [""]

    def started(cell, cell_index):
        if heading[cell_index] != last[0]:
            last[0] = heading[cell_index]
            if not client.live:
                print(f"{path.name}: {last[0]} ({time.perf_counter() - began:.0f} s)", flush=True)
        client.show(f"{path.name}: {last[0]}")

    client.on_cell_start = started
    copy = folder / path.name
    try:
        client.execute()
    finally:
        client.show("")
        if sockets:
            sockets.cleanup()
        text = nbformat.writes(notebook) + "\n"
        atomic_write(copy, lambda file: file.write(text.encode()))
        html, _ = HTMLExporter(config=WITHOUT).from_notebook_node(notebook)
        atomic_write(copy.with_suffix(".html"), lambda file: file.write(html.encode()))
    if store:
        atomic_write(path, lambda file: file.write(text.encode()))
    print(f"{path.name}: done in {time.perf_counter() - began:.0f} s")
    return copy


def fill_in(path: Path, name: str, text: str) -> None:
    """Replace what stands between a file's two comments of that name. Raises ValueError where there are none."""
    content = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: ", f"<!-- end of {name} -->"
    before, found, rest = content.partition(begin)
    opening, _, rest = rest.partition("-->\n")
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path}: expected the comments {begin}... --> and {end}")
    atomic_write(path, lambda file: file.write(f"{before}{begin}{opening}-->\n\n{text}\n\n{end}{after}".encode()))


def update_readme(path: Path, results: dict) -> None:
    """Write the results tables into the README."""
    parts = []
    for task, name in training.NAMES.items():
        if task in results:
            parts.append(f"**{name.capitalize()}**")
            parts.append(tables.headline(task, results[task]))
            parts += ["How its networks were trained:", tables.training_table(results[task])]
    fill_in(path, "results", "\n\n".join(parts))


def main() -> int:
    """Run the notebooks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="publish: outputs in the notebooks, figures, histories, weights")
    parser.add_argument("notebook", nargs="?", choices=list(training.NAMES.values()), help="by default both")
    chosen = parser.parse_args()
    store, tasks = chosen.store, [task for task, name in training.NAMES.items() if chosen.notebook in (None, name)]
    training.forgive_output()
    try:
        profile = training.choose_profile()
        training.check_runs_folder()
    except (ValueError, SaveError) as error:
        parser.error(str(error))
    if store and not profile.publishable:
        allowed = [name for name, each in training.PROFILES.items() if each.publishable]
        parser.error(f"--store: expected PROFILE to be one of {', '.join(allowed)}, found {profile.name}")
    os.environ["STORE"] = "yes" if store else ""  # for the notebooks' kernels, see `Profile.outcome_folder`
    folder = training.runs_folder() / profile.name
    print(f"profile {profile.name}: {profile.about}", flush=True)
    copies = []
    for name in map(NOTEBOOKS.get, tasks):
        try:
            copies.append(execute(HOME / name, store, folder))
        except CellExecutionError as error:
            print(f"{name} failed; what it did until then is in {folder / name}\n{error}", file=sys.stderr)
            return 1
        except (KeyboardInterrupt, DeadKernelError):  # Ctrl-C makes nbclient end the kernel
            said = f"{name} was stopped, or its kernel died. The same command goes on from there"
            print(f"{said}: finished and half-trained runs are kept in {training.runs_folder()}", file=sys.stderr)
            return 130
    figures = profile.outcome_folder("figures")
    results = load_json(figures / "results.json")
    for task in tasks:
        print(f"\n{task}\n{tables.results_table(task, results[task])}")
    if store:
        update_readme(HOME / "README.md", results)
    print("\nExecuted notebooks, also as HTML:", *copies, sep="\n  ")
    print(f"Figures and results.json: {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
