"""One live line while a network is trained: in a notebook a display that ends as a short log, in a terminal a line that
is rewritten, elsewhere nothing."""

import sys
import time
from typing import Any

from training.loop import Hooks, TrainState, best_epoch
from training.settings import Settings

LOGGED = 8  # epochs of the log, or about so many


class Progress:
    """Shows a run through its hooks; as a context, it leaves the log of a run that has trained at its end."""

    def __init__(self, name: str, settings: Settings, images: int):
        self.name, self.settings, self.images = name, settings, images
        self.hooks = Hooks(self._on_step, self._on_epoch)
        self.display: Any = None
        self.began, self.first, self.shown = 0.0, 0, 0.0
        self.state: TrainState | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self.display is not None and kind is None:
            self.display.update(_Text(short_log(self.state.history)))
        elif self.state is not None and self.display is None and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)

    def _on_step(self, state: TrainState, step: int) -> None:
        """After each batch; shows at most twice a second, and asks the device nothing."""
        now = time.perf_counter()
        if self.state is None:
            self.began, self.first, self.state = now, state.epoch, state
            self.display = _make_display(f"{self.name}: starting")
        if now - self.shown >= 0.5:
            self._show(state, min(step * self.settings.batch_size, self.images))

    def _on_epoch(self, state: TrainState) -> None:
        self._show(state, 0)

    def _show(self, state: TrainState, seen: int) -> None:
        self.shown = time.perf_counter()
        done, epochs = state.epoch, self.settings.epochs
        rate = ((done - self.first) * self.images + seen) / max(self.shown - self.began, 1e-9)
        left = ((epochs - done) * self.images - seen) / max(rate, 1e-9)
        line = f"{self.name} epoch {min(done + 1, epochs)}/{epochs} {seen:,}/{self.images:,} images, {rate:,.0f}/s, "
        minutes, seconds = divmod(round(left), 60)
        line += f"{minutes}:{seconds:02d} left"
        if state.history:
            loss, val_loss, accuracy, mean = (
                state.history[name][-1] for name in ("train_loss", "val_loss", "val_accuracy", "val_mean")
            )
            line += f" | loss {loss:.3f}, val {val_loss:.3f}, accuracy {accuracy:.3f}, mean {mean:.3f}"
        if self.display is not None:
            self.display.update(_Text(line))
        elif sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


class _Text:
    """Plain text for IPython's display, without quotes."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _make_display(text: str) -> Any:
    """A display of a notebook that can be updated; None outside of notebooks."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    return display(_Text(text), display_id=True) if getattr(get_ipython(), "kernel", None) is not None else None


def forgive_output() -> None:
    """Let a terminal without a character show a question mark in its place, instead of ending the program."""
    if hasattr(sys.stdout, "reconfigure"):  # not so in notebooks, which show every character
        sys.stdout.reconfigure(errors="replace")


def short_log(history: dict[str, list[float]]) -> str:
    """A few epochs of a history, evenly spaced, with the best one marked."""
    epochs, best = len(history["seconds"]), best_epoch(history)
    step = -(-epochs // LOGGED)
    chosen = sorted({1, best, epochs, *range(step, epochs + 1, step)})
    lines = ["epoch   training loss   validation loss   accuracy      IoU     mean   seconds"]
    for epoch in chosen:
        row = {name: values[epoch - 1] for name, values in history.items()}
        lines.append(
            f"{epoch:5d}{'*' if epoch == best else ' '}{row['train_loss']:15.4f}{row['val_loss']:18.4f}"
            f"{row['val_accuracy']:11.4f}{row['val_iou']:9.4f}{row['val_mean']:9.4f}{row['seconds']:10.1f}"
        )
    return "\n".join([*lines, "* best epoch by validation mean accuracy"])
