"""Where a transformers model keeps its frequencies and what it multiplies cos and sin by.

A rotary module has them once, or once for each type of layers, whose name then stands before the attribute's
(transformers' `Gemma3RotaryEmbedding`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from yarnconv.rope.resolve import EXTENDED_LAYER_TYPE
from yarnconv.rope.tables import Float64Array, RopeTables

INV_FREQ, SCALING = "inv_freq", "attention_scaling"
STATIC = "default"  # a RoPE type that transformers computes once


def _frequencies(module: Any) -> Iterator[tuple[str, Any]]:
    """A module's own: its buffers, and longrope's second set, a plain attribute from the first call on."""
    for name, values in (*module.named_buffers(recurse=False), *vars(module).items()):
        if name.endswith(INV_FREQ):
            yield name, values


class Rotations:
    """The rotary modules of a model."""

    def __init__(self, model: Any) -> None:
        self._modules = [m for m in model.modules() if any(True for _ in _frequencies(m))]
        # of latent attention the factor acts on the scale of the scores, too
        self._latent = [m for m in model.modules() if hasattr(m, "kv_lora_rank") and hasattr(m, "scaling")]
        assert self._modules, "the model has no frequencies"

    def freeze(self) -> None:
        """Let no later call choose other frequencies of the extended layers by its length, as longrope does.

        Layers of other types keep theirs: what a length chooses for them is part of the model that is asked.
        """
        for module in self._modules:
            if isinstance(module.rope_type, str):
                module.rope_type = STATIC
            elif EXTENDED_LAYER_TYPE in module.rope_type:  # by layer type
                module.rope_type[EXTENDED_LAYER_TYPE] = STATIC

    def _buffers(self, *, extended: bool) -> list[Any]:
        """All of them, or those of the layers that are extended, the one in use first."""
        found = [pair for module in self._modules for pair in _frequencies(module)]
        own = [(name, buffer) for name, buffer in found if name.startswith(EXTENDED_LAYER_TYPE)]
        chosen = own if extended and own else found
        return [buffer for _, buffer in sorted(chosen, key=lambda pair: len(pair[0]))]

    def error(self, inv_freq: Float64Array) -> Float64Array:
        """Relative error of the extended layers' float32 frequencies, from exact ones, float64 both."""
        made = self._buffers(extended=True)[0].double().cpu().numpy()
        error: Float64Array = np.abs(made / inv_freq - 1.0)
        return error

    @contextmanager
    def disturbed(self, relative: Float64Array) -> Iterator[None]:
        """While entered, every frequency is off by a relative error: float64[rotary_dim/2]."""
        import torch

        kept = [(buffer, buffer.clone()) for buffer in self._buffers(extended=False)]
        with torch.inference_mode():  # longrope's second set is made in it
            for buffer, frequencies in kept:
                exact = frequencies.double() * torch.from_numpy(1.0 + relative).to(frequencies.device)
                buffer.copy_(exact.float())
        try:
            yield
        finally:
            with torch.inference_mode():
                for buffer, frequencies in kept:
                    buffer.copy_(frequencies)

    @contextmanager
    def exchanged(self, tables: RopeTables) -> Iterator[None]:
        """While entered, the extended layers of a model that is not scaled rotate by other tables, which are
        static.
        """
        import torch

        kept = [(buffer, buffer.clone()) for buffer in self._buffers(extended=True)]
        names = (f"{EXTENDED_LAYER_TYPE}_{SCALING}", SCALING)
        places = [(m, next(name for name in names if hasattr(m, name))) for m in self._modules]
        factors = [getattr(module, name) for module, name in places]
        scales = [module.scaling for module in self._latent]
        try:
            with torch.inference_mode():  # longrope's second set is made in it
                for buffer, _ in kept:
                    buffer.copy_(torch.from_numpy(tables.inv_freq))
            for module, name in places:
                setattr(module, name, tables.attention_factor)
            for module, scale in zip(self._latent, scales, strict=True):
                module.scaling = scale * tables.softmax_multiplier
            yield
        finally:
            for module, scale in zip(self._latent, scales, strict=True):
                module.scaling = scale
            for (module, name), factor in zip(places, factors, strict=True):
                setattr(module, name, factor)
            with torch.inference_mode():
                for buffer, frequencies in kept:
                    buffer.copy_(frequencies)
