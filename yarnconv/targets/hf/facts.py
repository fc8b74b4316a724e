"""What an extended checkpoint's files say of its RoPE, beside what the plan makes of them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from math import isclose
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.model.describe import with_defaults
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import Scaling, method_name
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets
from yarnconv.rope.writing import as_transformers
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.hf.config import LENGTH_SYNONYMS, position_limit
from yarnconv.targets.hf.files import TOKENIZER_CONFIG

SAME_NUMBER = 1e-6  # relative, what float32 tells apart
# Fields of a scaling that the temperature is made of: it is compared as what comes out of them.
_OF_THE_TEMPERATURE = frozenset(
    {"attention_factor", "mscale", "mscale_all_dim", "temperature_coefficient", "softmax_mscale"}
)
# By what name a config.json has the fields that are called otherwise here.
_KEYS = {"theta": "rope_theta", "original_context": "original_max_position_embeddings"}


def _rope_facts(scaling: Scaling) -> dict[str, Any]:
    facts: dict[str, Any] = {"rope_type": method_name(scaling)}
    for field in fields(scaling):
        if field.name not in _OF_THE_TEMPERATURE:
            facts[_KEYS.get(field.name, field.name)] = getattr(scaling, field.name)
    facts["attention_factor"] = buckets(scaling)[-1].attention_factor
    return facts


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(_same, expected, found))
    numbers = isinstance(expected, int | float) and isinstance(found, int | float)
    if not numbers or isinstance(expected, bool):
        return bool(expected == found)
    try:
        return isclose(expected, found, rel_tol=SAME_NUMBER)
    except OverflowError:  # a whole number beyond any float
        return False


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fact(key: str, expected: Any, found: Any, *, decisive: bool = True) -> FactComparison:
    return FactComparison(
        key=key,
        expected=_shown(expected),
        found=_shown(found),
        agrees=_same(expected, found),
        decisive=decisive,
    )


def _spelled(expected: Scaling, config: Mapping[str, Any], spelling: str) -> Iterator[FactComparison]:
    groups = read_rope(config).groups
    scaling = groups.get(None)
    if scaling is None:
        yield _fact(spelling, "one for all layers", f"one for each of {len(groups)} types of layers")
        return
    found = _rope_facts(scaling)
    for key, value in _rope_facts(expected).items():
        yield _fact(f"{spelling}.{key}", value, found.get(key))


def _rope(plan: ConversionPlan, config: Mapping[str, Any]) -> Iterator[FactComparison]:
    """Both spellings, each read as if the other were not there."""
    expected = as_transformers(plan.rope.main)
    legacy = {key: value for key, value in config.items() if key != "rope_parameters"}
    yield from _spelled(expected, legacy, "rope_scaling")
    if config.get("rope_parameters"):
        modern = {key: value for key, value in config.items() if key != "rope_scaling"}
        yield from _spelled(expected, modern, "rope_parameters")
    else:  # transformers 5 reads the other one
        yield _fact("rope_parameters", "as rope_scaling", None, decisive=False)


def _lengths(plan: ConversionPlan, config: Mapping[str, Any], directory: Path) -> Iterator[FactComparison]:
    names = ("max_position_embeddings", *(name for name in LENGTH_SYNONYMS if name in config))
    for name in names:
        yield _fact(name, position_limit(plan.rope), config.get(name))
    if (directory / TOKENIZER_CONFIG).exists():
        document = read_json_object(directory / TOKENIZER_CONFIG)
        length = document.get("model_max_length")
        yield _fact(f"{TOKENIZER_CONFIG}: model_max_length", plan.rope.target_context, length)


def _model(plan: ConversionPlan, config: Mapping[str, Any], keys: frozenset[str]) -> Iterator[FactComparison]:
    """Everything else that the model is computed with must be the reference's."""
    for key in sorted(keys - {"head_dim"}):
        if (found := config.get(key)) != (expected := plan.config.get(key)):
            yield _fact(key, expected, found)


def _beside(directory: Path) -> Iterator[FactComparison]:
    """Files that transformers would load instead of, or on top of, the weights that are judged."""
    if (directory / "adapter_config.json").exists():
        yield _fact("adapter_config.json", None, "present")
    if (directory / INDEX_FILE).exists() and (directory / SINGLE_FILE).exists():
        yield _fact(f"{SINGLE_FILE} beside {INDEX_FILE}", None, "present")


def compare_metadata(
    plan: ConversionPlan, artefact: Checkpoint, keys: frozenset[str]
) -> tuple[FactComparison, ...]:
    """Every fact of an extended checkpoint against the plan. keys: of config.json that the model is computed
    with. Raises BadInput where a spelling cannot be read.
    """
    config = with_defaults(plan.family, artefact.config)
    return (
        *_rope(plan, config),
        *_lengths(plan, config, artefact.directory),
        *_model(plan, config, keys),
        *_beside(artefact.directory),
    )
