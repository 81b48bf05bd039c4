"""One live line while a network is trained, in a notebook or a terminal, elsewhere nothing; and how scripts end."""

import sys
import time
from collections.abc import Callable
from typing import Any

from data import DataError
from data.files import SaveError
from training.loop import Hooks, TrainState, best_epoch
from training.runs import RunInUse
from training.settings import Settings

LOGGED = 8  # epochs of the log that a notebook keeps, or about so many


class Progress:
    """Shows a run through its hooks; as a context, it leaves the log of a run that has trained at its end."""

    def __init__(self, name: str, settings: Settings, n_train: int):
        self.name, self.settings, self.n_train = name, settings, n_train
        self.hooks = Hooks(self._on_step, lambda state: self._show(state, 0))
        self.display: Any = None
        self.began, self.first, self.shown = 0.0, 0, 0.0
        self.state: TrainState | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self.state is not None and kind is None:
            self._print(short_log(self.state.history) if self.display is not None else "")

    def _on_step(self, state: TrainState, step: int) -> None:
        """After each batch; shows at most twice a second, and asks the device nothing."""
        if self.state is None:
            self.began, self.first, self.state = time.perf_counter(), state.epoch, state
            self.display = _make_display()
        if time.perf_counter() - self.shown >= 0.5:
            self._show(state, min(step * self.settings.batch_size, self.n_train))

    def _show(self, state: TrainState, seen: int) -> None:
        self.shown = time.perf_counter()
        done, epochs = state.epoch, self.settings.epochs
        rate = ((done - self.first) * self.n_train + seen) / max(self.shown - self.began, 1e-9)
        minutes, seconds = divmod(round(((epochs - done) * self.n_train - seen) / max(rate, 1e-9)), 60)
        line = f"{self.name} epoch {min(done + 1, epochs)}/{epochs} {seen:,}/{self.n_train:,} images, {rate:,.0f}/s, "
        line += f"{minutes}:{seconds:02d} left"
        if state.history:
            names = {"loss": "train_loss", "val": "val_loss", "accuracy": "val_accuracy", "mean": "val_mean"}
            line += " | " + ", ".join(f"{name} {state.history[key][-1]:.3f}" for name, key in names.items())
        self._print(line)

    def _print(self, text: str) -> None:
        if self.display is not None:
            self.display.update({"text/plain": text}, raw=True)
        elif sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _make_display() -> Any:
    """A display of a notebook that can be updated; None outside of notebooks."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    kernel = getattr(get_ipython(), "kernel", None)
    return display({"text/plain": ""}, raw=True, display_id=True) if kernel is not None else None


def short_log(history: dict[str, list[float]]) -> str:
    """A few epochs of a history, evenly spaced, with the best one marked."""
    epochs, best = len(history["seconds"]), best_epoch(history)
    chosen = sorted({1, best, epochs, *range(step := -(-epochs // LOGGED), epochs + 1, step)})
    lines = ["epoch   training loss   validation loss   accuracy      IoU     mean   seconds"]
    for epoch in chosen:
        row = {name: values[epoch - 1] for name, values in history.items()}
        lines.append(
            f"{epoch:5d}{'*' if epoch == best else ' '}{row['train_loss']:15.4f}{row['val_loss']:18.4f}"
            f"{row['val_accuracy']:11.4f}{row['val_iou']:9.4f}{row['val_mean']:9.4f}{row['seconds']:10.1f}"
        )
    return "\n".join([*lines, "* best epoch by validation mean accuracy"])


def forgive_output() -> None:
    """Let a terminal without a character show a question mark in its place, instead of ending the program."""
    if hasattr(sys.stdout, "reconfigure"):  # not so in notebooks, which show every character
        sys.stdout.reconfigure(errors="replace")


def guard(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit with its status. Errors meant for the user are said in one line."""
    forgive_output()
    try:
        sys.exit(main())
    except (DataError, SaveError, RunInUse) as error:
        sys.exit(str(error))
