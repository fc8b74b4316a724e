"""The reference: transformers' own model class with the expected plan, in float32 on the CPU unless asked
otherwise.

The only room that knows transformers. Of a config.json only what the plan has checked gets there, and no
remote code; weights are handed over as arrays and not copied.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import NotJudged
from yarnconv.model.family import Family
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import DynamicNtk, DynamicYarn, Scaling, Yarn
from yarnconv.rope.tables import Float32Array, Float64Array, RopeTables
from yarnconv.rope.writing import as_transformers, write_rope
from yarnconv.verify.components import require
from yarnconv.verify.computing import Computing, LazyWeights, shape_of
from yarnconv.verify.passages import Passage
from yarnconv.verify.placing import place
from yarnconv.verify.rotations import Rotations

# What of a config.json reaches transformers, beside what the family's data file names: numbers and switches
# that the plan has checked. Everything else (attention kernels, code, what to return) is ours to say.
_DIMENSIONS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_ORIGINAL = "original_max_position_embeddings"
_ROPE_KEYS = frozenset(
    {_ORIGINAL, "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"}
)


def transformers_rope(scaling: Scaling) -> dict[str, Any]:
    """A scaling as `rope_parameters` that transformers computes with."""
    dynamic = isinstance(scaling, DynamicNtk | DynamicYarn)
    assert not dynamic, "a dynamic scaling is judged bucket by bucket"
    return write_rope(as_transformers(scaling))


def _rope_parameters(plan: ConversionPlan, scaling: Scaling) -> dict[str, Any]:
    """Of all layers, the extended ones with this scaling; by layer type where the family has it so."""
    head_dim = plan.description.layers[0].attention.turning_dim

    def spelled(one: Scaling) -> dict[str, Any]:
        return {**transformers_rope(one), "partial_rotary_factor": one.rotary_dim / head_dim}

    if plan.family.structure.theta_by_layer_type is None:
        return {**spelled(scaling), **_growth_parameters(plan, scaling)}
    parameters: dict[str, Any] = {}
    for group in plan.rope.groups:
        if group.scaling is not None:
            own = scaling if group is plan.rope.main_group else group.scaling
            parameters[plan.description.layers[group.layers[0]].attention.layer_type] = spelled(own)
    if isinstance(scaling, Yarn):
        parameters["truncate"] = scaling.truncate  # which transformers reads here and nowhere else
    return parameters


def _growth_parameters(plan: ConversionPlan, scaling: Scaling) -> dict[str, Any]:
    """The growth of queries, which transformers reads among the RoPE parameters."""
    key, growth = plan.family.structure.query_growth, plan.description.layers[0].attention.query_growth
    if key is None:
        return {}
    original = getattr(scaling, "original_context", plan.rope.original_context)
    return {key: growth.beta if growth is not None else 0.0, _ORIGINAL: original}


def computed_keys(family: Family) -> frozenset[str]:
    """The keys of a config.json that a family's model is computed with, apart from its RoPE's, its depth and
    its vocabulary.
    """
    return frozenset({*_DIMENSIONS, *family.config_defaults, *family.structure.config_keys} - _ROPE_KEYS)


def _first_layers(own: dict[str, Any], all_layers: int, layers: int) -> dict[str, Any]:
    """Lists with one entry per layer, such as layer_types, cut to as many layers."""
    return {
        key: value[:layers] if isinstance(value, list) and len(value) == all_layers else value
        for key, value in own.items()
    }


def _transformers() -> Any:
    require("check", "torch", "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


def _config(plan: ConversionPlan, scaling: Scaling, layers: int, vocab_size: int) -> Any:
    known = computed_keys(plan.family) & plan.config.keys()
    own = {key: plan.config[key] for key in sorted(known)}
    own |= {
        **_first_layers(own, len(plan.description.layers), layers),
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
        "pad_token_id": None,  # a class's own may lie beyond the rows that are kept
        "head_dim": plan.description.layers[0].attention.turning_dim,
        "max_position_embeddings": plan.rope.target_context,
        "tie_word_embeddings": plan.description.tied_embeddings,
    }
    try:
        config = _transformers().AutoConfig.for_model(plan.family.model_type, **own)
    except Exception as error:  # it raises what it happens upon, and errors of its own kinds
        said = " ".join(str(error).split())[:300]
        what = f"transformers' {plan.family.model_type} does not take it ({type(error).__name__}: {said})"
        raise NotJudged(
            what,
            where="config.json",
            fix="Correct it until transformers loads the checkpoint.",
        ) from None
    # not through the class, which may take one type for another (Phi-3: yarn for longrope)
    config.rope_parameters = _rope_parameters(plan, scaling)
    if hasattr(config, _ORIGINAL):  # which would overrule the scaling's own
        setattr(config, _ORIGINAL, getattr(scaling, "original_context", plan.rope.original_context))
    return config


def reference_version(computing: Computing) -> str:
    """What the reference is computed with."""
    return f"transformers {version('transformers')}, torch {version('torch')}{computing.said}"


def read_directory_config(
    directory: Path, config: Mapping[str, Any], plan: ConversionPlan, *, layers: int, vocab_size: int
) -> Any:
    """What transformers makes of a config.json that claims to hold the plan, read from a file as a user would
    have it read. config: the document; it was checked as a plan's is. directory: to write the file to.
    """
    by_type = plan.family.structure.theta_by_layer_type or {}
    rope = {*_ROPE_KEYS, "partial_rotary_factor", _ORIGINAL}
    known = computed_keys(plan.family) | rope | {theta.key for theta in by_type.values()}
    own = {key: value for key, value in config.items() if key in known}
    experts = plan.family.structure.experts
    if experts is not None:  # of which the plan may have fewer than the file
        own[experts.count] = plan.config[experts.count]
    kept = {
        **_first_layers(own, len(plan.description.layers), layers),
        "model_type": plan.family.model_type,
        "num_hidden_layers": layers,
        "vocab_size": vocab_size,
        "pad_token_id": None,
    }
    (directory / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    load = _transformers().AutoConfig.from_pretrained
    return load(str(directory), trust_remote_code=False, local_files_only=True)


def _as_transformers(plan: ConversionPlan, weights: Mapping[str, Float32Array]) -> Mapping[str, Float32Array]:
    """Weights in transformers' layout, which for some families has the matrices of experts [in, out]."""
    experts = plan.family.structure.experts
    if experts is None or not experts.turned:
        return weights
    held = {b.expected.name for b in plan.bindings if b.expected.role in {"experts_gate_up", "experts_down"}}

    def turned(name: str) -> Float32Array:
        return weights[name].swapaxes(1, 2) if name in held else weights[name]

    if not isinstance(weights, LazyWeights):
        return {name: turned(name) for name in weights}
    shapes = {n: (s[0], s[2], s[1]) if n in held else s for n, s in weights.shapes.items()}
    return LazyWeights(shapes, turned)


class TransformersModel:
    """A model of transformers' own class: the plan's first layers.

    config: transformers'.
    weights: by the checkpoint's names, float32; as many layers and vocabulary rows as are asked for. They
        are used in place unless `computing` asks for something else, and must stay alive and writable.
    """

    def __init__(
        self,
        plan: ConversionPlan,
        config: Any,
        weights: Mapping[str, Float32Array],
        *,
        layers: int,
        computing: Computing,
    ) -> None:
        from_config = _transformers().AutoModelForCausalLM.from_config
        build = partial(from_config, config, attn_implementation="eager")
        kept = plan.description.layers[:layers]
        self._windows = {layer.attention.layer_type: layer.attention.window for layer in kept}
        names = plan.family.tensors
        tied = {names["output_head"]: names["token_embedding"]} if config.tie_word_embeddings else {}
        self._computing = computing
        self._model, self._stored = place(build, _as_transformers(plan, weights), computing, tied)
        self._rotations = Rotations(self._model)

    def frequency_error(self, inv_freq: Float64Array) -> Float64Array:
        """Relative error of transformers' float32 frequencies, from exact ones: float64[rotary_dim/2]."""
        return self._rotations.error(inv_freq)

    def disturbed(self, relative: Float64Array) -> AbstractContextManager[None]:
        """While entered, every frequency is off by a relative error: float64[rotary_dim/2].

        How far that moves the logits is how far a runtime that rounds its angles so may be off.
        """
        return self._rotations.disturbed(relative)

    @contextmanager
    def altered(
        self, tables: RopeTables, *, rows: Mapping[str, NDArray[np.intp]], windows: bool
    ) -> Iterator[None]:
        """While entered, the extended layers rotate by other tables, which are static.

        rows: by the names of tensors, which row stands in each place. windows: whether sliding windows are
        there.
        """
        import torch

        kept_windows = self._windows
        # rows of weights that are read anew each time are moved when they are
        own = [p for p in self._model.named_parameters() if p[0] in rows and not p[1].is_meta]
        values = [parameter.data for _, parameter in own]
        try:
            for name, parameter in own:
                parameter.data = parameter.data[torch.from_numpy(rows[name]).to(parameter.device)]
            self._windows = self._windows if windows else dict.fromkeys(self._windows)
            if self._stored is not None:
                self._stored.moved = rows
            with self._rotations.exchanged(tables):
                yield
        finally:
            if self._stored is not None:
                self._stored.moved = {}
            self._windows = kept_windows
            for (_, parameter), value in zip(own, values, strict=True):
                parameter.data = value

    @contextmanager
    def products_in(self, dtype: str) -> Iterator[None]:
        """While entered, matrices are multiplied in a narrower type, such as float16; angles and norms are
        not. How far that moves the logits is how far a runtime that computes in that type may be off.
        """
        import torch

        with torch.autocast(self._computing.device, dtype=getattr(torch, dtype)):
            yield

    def _mask(self, passage: Passage, window: int | None) -> Any:
        """[1, 1, n, n]. An explicit one: without it transformers takes a gap in the positions for
        another sequence.
        """
        import torch

        hidden = torch.from_numpy(~passage.visible(window))
        dtype = getattr(torch, self._computing.dtype)
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
        return mask[None, None].to(self._computing.device)

    def logits(self, passage: Passage) -> Float32Array:
        """float32[judged tokens, vocabulary] of a passage."""
        import torch

        masks = {kind: self._mask(passage, window) for kind, window in self._windows.items()}
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(passage.tokens)[None].to(self._computing.device),
                position_ids=torch.from_numpy(passage.positions)[None].to(self._computing.device),
                # where layers differ, each takes its kind's
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                use_cache=False,
                logits_to_keep=len(passage.tokens) - passage.judged,
            )
        logits: Float32Array = np.ascontiguousarray(output.logits[0].float().cpu().numpy())
        return logits


class Reference(TransformersModel):
    """The model that the plan describes. scaling: static; of a dynamic plan, that of one bucket."""

    def __init__(
        self,
        plan: ConversionPlan,
        weights: Mapping[str, Float32Array],
        *,
        layers: int,
        scaling: Scaling,
        computing: Computing,
    ) -> None:
        vocab_size, _ = shape_of(weights, plan.family.tensors["token_embedding"])
        config = _config(plan, scaling, layers, vocab_size)
        super().__init__(plan, config, weights, layers=layers, computing=computing)
        self._rotations.freeze()
        growth = plan.description.layers[0].attention.query_growth
        if growth is not None:  # read at every call, and the frequencies are made
            self._model.config.rope_parameters[_ORIGINAL] = growth.context
