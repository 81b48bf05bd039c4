"""Networks as the notebooks print them and the report draws them: layers, sizes, source."""

import inspect
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import models


class Layer(NamedTuple):
    """A layer with weights, or one that changes the image's size."""

    kind: str  # "convolution", "linear", "batch norm", "max pooling", "pixels to channels"
    kernel: tuple[int, ...]  # height and width, () where it has none
    stride: int
    size: tuple[int, ...]  # of its output: channels, height, width; or how many numbers
    parameters: int

    def __str__(self) -> str:
        """A line of a listing: "convolution 3x3, stride 2 -> 64x12x15       18,432"."""
        kernel, size = "x".join(map(str, self.kernel)), "x".join(map(str, self.size))
        stride = f", stride {self.stride}" if self.kind == "convolution" and self.stride > 1 else ""
        return f"{f'{self.kind} {kernel}{stride}':26s} -> {size:10s}{self.parameters:>12,}"


KINDS = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch norm",
    nn.MaxPool2d: "max pooling",
    nn.PixelUnshuffle: "pixels to channels",
}


def list_layers(network: nn.Module) -> list[Layer]:
    """The layers of a network that are of one of the KINDS, in order."""
    layers = []

    def note(layer: nn.Module, _: tuple, output: Tensor) -> None:
        kernel = getattr(layer, "kernel_size", getattr(layer, "downscale_factor", ()))
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else kernel[0] if kernel else 1
        size = tuple(output.shape[1:])
        layers.append(Layer(KINDS[type(layer)], kernel, stride, size, models.count_parameters(layer)))

    hooks = [layer.register_forward_hook(note) for layer in network.modules() if type(layer) in KINDS]
    was_training = network.training
    network.eval()  # batch norm has no statistics of a single empty image
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *models.IMAGE))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return layers


@torch.inference_mode()
def stage_sizes(network: models.GridNetwork) -> dict[str, tuple[int, ...]]:
    """Output sizes (channels, height, width) of the backbone's parts and of the head."""
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        return lambda layer, inputs, output: sizes.__setitem__(name, tuple(output.shape[1:]))

    parts = {**dict(network.backbone.named_children()), "head": network.head}
    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    network.eval()(torch.zeros(1, *models.IMAGE))
    for hook in hooks:
        hook.remove()
    return sizes


def source_of(*pieces: Callable) -> str:
    """The source of functions, methods and classes, as a block of code in Markdown."""
    return "```python\n" + "\n\n".join(textwrap.dedent(inspect.getsource(piece)) for piece in pieces) + "```"
