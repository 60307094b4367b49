"""Passes of a slim and a dense model up to one block, which begin where earlier blocks have left the clips.

Blocks are fitted in the order of a pass, so that nothing before the block at hand changes any more: what the layers
before its own, or a whole encoder's, have given to the residual stream is kept, if there is room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from leanear.calibration.sites import AttentionSite, FeedForwardSite
from leanear.data.examples import Inputs, SpeechInputs
from leanear.families.family import Family

# Of what both models make of the clips behind one layer; above, passes begin with features. Twice as much is in memory
# while they go on to the next.
MOST_KEPT_BYTES = 512 * 1024**2
Site = AttentionSite | FeedForwardSite
Pair = tuple[Site, Site]  # of the slim and of the dense model


class _Reached(Exception):
    """A pass has come to the block, or behind the layer, that it is for."""


@dataclass(frozen=True)
class Begun:
    """Inputs whose passes begin behind so many of an encoder's layers, indexed like a tensor.

    given: what those have given to the residual stream, (N, T, D); as_tuple: whether they return a tuple of it.
    """

    inputs: Inputs
    layers: int
    given: torch.Tensor
    as_tuple: bool

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: torch.Tensor | slice) -> Begun:
        return dataclasses.replace(self, inputs=self.inputs[index], given=self.given[index])

    def first_tokens(self, length: int) -> Begun:
        """The same with so many positions at most, of a decoder that follows."""
        return dataclasses.replace(self, inputs=cast(SpeechInputs, self.inputs).first_tokens(length))


@dataclass(frozen=True)
class Clips:
    """Clips as the slim and the dense model take them, and their targets."""

    slim: Inputs | Begun
    dense: Inputs | Begun
    targets: torch.Tensor

    def __getitem__(self, index: slice) -> Clips:
        return Clips(self.slim[index], self.dense[index], self.targets[index])

    def up_to(
        self,
        family: Family,
        pair: Pair,
        models: tuple[nn.Module, nn.Module],
        batch_size: int,
        least_tokens: float = math.inf,
    ) -> Clips:
        """Begun at the block's layer or, of a decoder's block, behind the encoder's, if that fits into memory.

        least_tokens: of an encoder, the first clips that have so many are enough, and more as far as they have room.
        """
        layers = _layers_before(family, models[0], pair[0])
        if layers == (self.slim.layers if isinstance(self.slim, Begun) else 0):
            return self
        of_one = _behind(family, models[0], self.slim[:1], layers, 1).given
        room = MOST_KEPT_BYTES // (2 * of_one.nbytes)
        least = least_tokens / of_one.shape[1] if pair[0].kind == "encoder" else math.inf
        kept = self[: max(math.ceil(min(least, len(self.targets))), room)]
        if len(kept.targets) > room:
            return kept
        both = zip(models, (kept.slim, kept.dense), strict=True)
        slim, dense = (_behind(family, model, inputs, layers, batch_size) for model, inputs in both)
        return Clips(slim, dense, kept.targets)


def at_block(family: Family, model: nn.Module, site: Site, inputs: Inputs | Begun) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block's output projection takes, and what the blocks have given up to there, where the pass ends."""
    in_encoder = site.kind == "encoder"
    contexts: list[torch.Tensor] = []
    given = [inputs.given] if in_encoder and isinstance(inputs, Begun) else []

    def add(_module: nn.Module, _arguments: tuple, output: torch.Tensor) -> None:
        given[:] = [given[0] + output if given else output]

    def end(_module: nn.Module, arguments: tuple, _output: torch.Tensor) -> None:
        contexts.append(arguments[0])
        raise _Reached

    blocks: list[Site] = [*family.attention_sites(model), *family.feed_forward_sites(model)]
    with contextlib.ExitStack() as hooks:
        for block in blocks:
            if (block.kind == "encoder") == in_encoder:
                hooks.callback(block.output.register_forward_hook(add).remove)
        hooks.callback(site.output.register_forward_hook(end).remove)
        with contextlib.suppress(_Reached):
            logits(family, model, inputs)
    return contexts[0], given[0]


def logits(family: Family, model: nn.Module, inputs: Inputs | Begun) -> torch.Tensor:
    """The model's logits of inputs, begun or not."""
    if not isinstance(inputs, Begun):
        return family.logits(model, inputs)

    def left(states: torch.Tensor) -> Any:
        return (states,) if inputs.as_tuple else states

    first, *others = _layers(family, model)[: inputs.layers]
    with contextlib.ExitStack() as undo:
        undo.enter_context(_doing(first, lambda states, *_, **__: left(states + inputs.given)))
        for layer in others:
            undo.enter_context(_doing(layer, lambda states, *_, **__: left(states)))
        return family.logits(model, inputs.inputs)


def _layers(family: Family, model: nn.Module) -> list[nn.Module]:
    of_decoder = family.decoder_layers(model)
    return [layer for layer in family.encoder_layers(model) if layer not in of_decoder]


def _layers_before(family: Family, model: nn.Module, site: Site) -> int:
    """How many of the encoder's layers a pass has gone through when it comes to the block's: all, of a decoder's."""
    layers = _layers(family, model)
    of_block = (number for number, layer in enumerate(layers) if any(each is site.output for each in layer.modules()))
    return next(of_block, len(layers))


def _behind(family: Family, model: nn.Module, inputs: Inputs | Begun, layers: int, batch_size: int) -> Begun:
    """The inputs, begun behind so many layers."""
    embedded: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    kinds: set[bool] = set()

    def end(_module: nn.Module, _arguments: tuple, output: Any) -> None:
        kinds.add(isinstance(output, tuple))
        given.append((output[0] if isinstance(output, tuple) else output) - embedded.pop())
        raise _Reached

    of_encoder = _layers(family, model)[:layers]
    with contextlib.ExitStack() as hooks:
        hooks.callback(of_encoder[0].register_forward_pre_hook(lambda _m, a: embedded.append(a[0])).remove)
        hooks.callback(of_encoder[-1].register_forward_hook(end).remove)
        for rows in torch.arange(len(inputs)).split(batch_size):
            with contextlib.suppress(_Reached):
                logits(family, model, inputs[rows])
    as_given = inputs.inputs if isinstance(inputs, Begun) else inputs
    return Begun(as_given, layers, torch.cat(given), kinds == {True})


@contextlib.contextmanager
def _doing(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The layer does this instead of what it does."""
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
