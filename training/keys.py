"""What makes two runs the same: settings, data, versions, and the code that a result depends on."""

import dis
import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import utils
from data import Split, Splits
from training.loop import build, train
from training.settings import Settings, runs_folder

OURS = ("data", "models", "training", "utils")
# What training uses of its arguments, which names in its code do not lead to.
REACHED = (utils.Normalizer.__call__, Settings.loss_weights.fget, Split.to)


def describe_run(network: type[nn.Module], splits: Splits, normal: utils.Normalizer, settings: Settings) -> dict:
    """All that a run's result depends on; runs that differ in any of it are different runs."""
    return {
        "network": network.__name__,
        "task": splits.task,
        "settings": asdict(settings),
        "source": splits.source,
        "pictures": len(splits.train),
        "data": splits.fingerprint,
        "normalization": asdict(normal),
        "code": code_digest(network, build, train, *REACHED),
        "torch": str(torch.__version__),
    }


def identity(about: dict[str, Any]) -> dict[str, Any]:
    """What two descriptions by `describe_run` have in common if they are of the same run, on whatever machines: mean
    and standard deviation follow from the data, see `Splits.fingerprint`, but for their last digits."""
    return {**about, "normalization": {name: round(value, 5) for name, value in about["normalization"].items()}}


def run_folder(about: dict[str, Any]) -> Path:
    """Where the run that `describe_run` describes is kept."""
    key = hashlib.sha256(json.dumps(identity(about), sort_keys=True).encode()).hexdigest()
    return runs_folder() / f"{about['task']}-{about['network']}-{key[:10]}"


def code_digest(*pieces: type | FunctionType) -> str:
    """SHA-256 of functions and classes and of all of this project's that they use, in whatever module: of what they
    are compiled to, so that comments, docstrings and the names of local variables do not count."""
    packages = {*OURS, *(piece.__module__.partition(".")[0] for piece in pieces)}
    found: dict[str, list[str]] = {}
    waiting: list[Any] = list(pieces)
    while waiting:
        piece = waiting.pop()
        piece = getattr(piece, "__func__", None) or getattr(piece, "fget", None) or piece
        piece = piece.func if isinstance(piece, cached_property) else piece
        piece = getattr(piece, "__wrapped__", piece)  # what a decorator such as torch.no_grad has hidden
        if not isinstance(piece, (type, FunctionType)) or piece.__module__.partition(".")[0] not in packages:
            continue
        name = f"{piece.__module__}.{piece.__qualname__}"
        if name in found:
            continue
        if isinstance(piece, type):
            members = {key: value for key, value in vars(piece).items() if not key.startswith("__")}
            found[name] = [f"{key} {value!r}" for key, value in members.items() if _is_constant(value)]
            waiting += [*piece.__bases__, *vars(piece).values()]
        elif piece.__code__.co_filename != "<string>":  # else dataclasses made it
            defaults = [*(piece.__defaults__ or ()), *(piece.__kwdefaults__ or {}).items()]
            found[name] = [repr([value for value in defaults if _is_constant(value)]), *_instructions(piece.__code__)]
            for key, value in _globals_of(piece):
                if _is_constant(value):
                    found[name].append(f"{key} = {value!r}")
                waiting.append(value)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _is_constant(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_constant, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _instructions(code: CodeType) -> Iterator[str]:
    """The instructions of a function and of those within it, local variables by number."""
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            yield from _instructions(step.argval)
        elif isinstance(step.argval, frozenset):
            yield f"{step.opname} {sorted(map(repr, step.argval))}"
        else:
            local = step.opcode in dis.haslocal or step.opcode in dis.hasfree or "_FAST" in step.opname
            yield f"{step.opname} {step.arg if local else step.argval!r}"


def _globals_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function's names stand for in its module, and in modules of ours that it names."""
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield name, value
        elif value.__name__.partition(".")[0] in OURS:
            yield from ((f"{name}.{each}", getattr(value, each)) for each in sorted(names) if hasattr(value, each))


def provenance() -> dict[str, str]:
    """Versions of what a run's numbers depend on, and the device that they are computed with."""
    gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    return {
        "device": f"one {torch.cuda.get_device_name()}" if gpu else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
