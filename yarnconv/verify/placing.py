"""Where the weights of a reference lie: in place, in memory, on a GPU, or in their files until needed.

What does not fit into the memory that there is stays where it came from, a mapped file, and comes block by
block when it is computed with; accelerate's hooks do that.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import NotJudged, one_of
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.components import require
from yarnconv.verify.computing import (
    BYTES,
    DEVICES,
    SHARE_OF_MEMORY,
    Computing,
    Device,
    LazyWeights,
    host_memory,
    shape_of,
)


def choose_device(text: str) -> Device:
    """The `--device` of that name. Raises NotJudged where it asks for a GPU that torch does not see."""
    import torch

    asked = one_of(text, DEVICES, "--device")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "sees no GPU"
        raise NotJudged(
            f"torch {torch.__version__} {built}",
            where="--device cuda",
            fix="Leave it out, or install a torch with CUDA where there is a GPU.",
        )
    return asked


class StoredTensors(Mapping[str, Any]):
    """Weights as torch tensors, by the names of the model's parameters; made when they are asked for.

    aliases: names that stand for others. moved: by name, which row stands in each place.
    """

    def __init__(self, weights: Mapping[str, Float32Array], aliases: Mapping[str, str]) -> None:
        self._weights, self._aliases = weights, aliases
        self.moved: Mapping[str, NDArray[np.intp]] = {}

    def __getitem__(self, name: str) -> Any:
        import torch

        values = self._weights[self._aliases.get(name, name)]
        return torch.from_numpy(values[self.moved[name]] if name in self.moved else values)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._weights), **dict.fromkeys(self._aliases)})

    def __len__(self) -> int:
        return len(set(self._weights) | set(self._aliases))


def _budget(computing: Computing) -> int | None:
    if computing.memory is not None:
        return computing.memory
    if computing.device == "cpu":
        return host_memory()
    import torch

    return int(SHARE_OF_MEMORY * torch.cuda.mem_get_info()[0])


def _lie_in_place(weights: Mapping[str, Float32Array], computing: Computing) -> bool:
    """Whether the model is computed with the very arrays: they take no memory that is not taken already, and
    none of mapped files that cannot be given back.
    """
    as_ever = computing.device == "cpu" and computing.dtype == "float32"
    return as_ever and not isinstance(weights, LazyWeights)


def place(
    build: Callable[..., Any],
    weights: Mapping[str, Float32Array],
    computing: Computing,
    aliases: Mapping[str, str],
) -> tuple[Any, StoredTensors | None]:
    """The model with its weights, and where those come from that are not with it. build: makes the model with
    weights of a dtype, on the device that torch is set to.
    """
    import torch

    dtype, budget = getattr(torch, computing.dtype), _budget(computing)
    needed = BYTES[computing.dtype] * sum(prod(shape_of(weights, name)) for name in weights)
    # what lies in place is offloaded only where that was asked
    limit = computing.memory if _lie_in_place(weights, computing) else budget
    if limit is not None and needed > limit:
        source = StoredTensors(weights, aliases)
        return _offloaded(build, source, computing, limit), source
    state = {name: torch.from_numpy(weights[name]).to(dtype) for name in weights}
    with torch.device("meta"):
        model = build(dtype=dtype)
    loaded, loading = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=state,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
    )
    # it would make up what it is not given
    assert not loading["missing_keys"], f"no weights for {sorted(loading['missing_keys'])[:3]}"
    return loaded.eval().to(computing.device), None


def _offloaded(build: Callable[..., Any], source: StoredTensors, computing: Computing, limit: int) -> Any:
    """A model of which as many blocks as fit lie in memory, and the others where they came from."""
    require("check", "accelerate")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from accelerate.big_modeling import init_empty_weights
        from accelerate.hooks import attach_align_device_hook_on_blocks
        from accelerate.utils.modeling import infer_auto_device_map, set_module_tensor_to_device

        dtype = getattr(torch, computing.dtype)
        with init_empty_weights(include_buffers=False):
            model = build(dtype=dtype)
        model.tie_weights()  # or accelerate counts the embedding twice
        main: int | str = 0 if computing.device == "cuda" else "cpu"
        device_map = infer_auto_device_map(
            model,
            max_memory={main: limit},
            no_split_module_classes=model._no_split_modules,
            dtype=dtype,
        )
    offload = {name: where != main for name, where in device_map.items()}
    for name, _ in model.named_parameters(remove_duplicate=False):
        block = max((b for b in offload if b == "" or name == b or name.startswith(f"{b}.")), key=len)
        if not offload[block]:
            set_module_tensor_to_device(model, name, main, value=source[name].to(dtype))
    attach_align_device_hook_on_blocks(
        model,
        execution_device=dict.fromkeys(offload, torch.device(computing.device)),
        offload=offload,
        weights_map=source,
    )
    return model.eval()
