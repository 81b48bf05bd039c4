"""One live line while a network is trained, in a notebook or a terminal, elsewhere nothing; and how scripts end."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from IPython import display, get_ipython

from data import DataError, files
from training.loop import Hooks, TrainState
from training.runs import RunInUse
from training.settings import Settings


class Progress(AbstractContextManager):
    """Shows a run through its `hooks`, at most twice a second. A notebook keeps the last line, a terminal none."""

    def __init__(self, name: str, settings: Settings, n_train: int):
        self.name, self.settings, self.n_train = name, settings, n_train
        self.hooks = Hooks(self._on_step, lambda state: self._show(state, 0))
        self.began, self.shown, self.display = 0.0, 0.0, None

    def __exit__(self, *error: object) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _on_step(self, state: TrainState, step: int) -> None:
        if not self.began:
            self.began, self.first = time.perf_counter(), state.epoch
        if time.perf_counter() - self.shown >= 0.5:
            self._show(state, min(step * self.settings.batch_size, self.n_train))

    def _show(self, state: TrainState, seen: int) -> None:
        self.shown, done, epochs = time.perf_counter(), state.epoch, self.settings.epochs
        trained = (done - self.first) * self.n_train + seen
        left = round(((epochs - done) * self.n_train - seen) / trained * (self.shown - self.began))  # seconds
        images = f"{seen:,}/{self.n_train:,} images, " if seen else ""
        line = f"{self.name} epoch {done + bool(seen)}/{epochs}, {images}{left // 60}:{left % 60:02d} left"
        for name in ("train_loss", "val_loss", "val_accuracy", "val_mean") if state.history else ():
            line += f", {name} {state.history[name][-1]:.3f}"
        if self.display:
            self.display.update({"text/plain": line}, raw=True)
        elif hasattr(get_ipython(), "kernel"):
            self.display = display.display({"text/plain": line}, raw=True, display_id=True)
        elif sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def forgive_output() -> None:
    """Let a terminal show a question mark for what it cannot show, instead of ending the program."""
    if hasattr(sys.stdout, "reconfigure"):  # not so in notebooks
        sys.stdout.reconfigure(errors="replace")


def guard(main: Callable[[], str | int | None]) -> None:
    """Run a script's main function and exit with its status. Errors meant for the user are said in one line."""
    forgive_output()
    try:
        sys.exit(main())
    except (DataError, files.SaveError, RunInUse) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. What is finished is kept")
