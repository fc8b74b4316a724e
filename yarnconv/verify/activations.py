"""What a runtime's table of an activation function does to a model of transformers'."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ACTIVATIONS = "transformers.activations"
WITHIN = 10.0  # outside, ggml computes what the function has come to: 0, or its argument


@contextmanager
def activations_in_half() -> Iterator[None]:
    """While entered, every model's activation functions are looked up as ggml's gelu is: by the argument in
    float16, in a table of float16 (`ggml_vec_gelu_f32`).
    """
    import torch
    from torch.nn.modules.module import register_module_forward_hook

    def looked_up(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        if type(module).__module__ != ACTIVATIONS:
            return None
        (argument,) = arguments
        half = module.forward(argument.half().to(argument.dtype)).half().to(argument.dtype)
        return torch.where(argument.abs() < WITHIN, half, output)

    hook = register_module_forward_hook(looked_up)
    try:
        yield
    finally:
        hook.remove()
