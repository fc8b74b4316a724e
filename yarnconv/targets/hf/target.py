"""The checkpoint target: what it refuses, and how a plan becomes a directory that transformers loads."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarnconv.artifact import check_free_space, staged_directory
from yarnconv.checkpoint.checkpoint import INDEX_FILE
from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.json_files import MEBIBYTE, read_json_object
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.family import text_part
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.scaling import DynamicNtk, DynamicYarn, Linear, NtkAware, Unscaled, Yarn
from yarnconv.rope.tables import ntk_base
from yarnconv.rope.writing import as_transformers
from yarnconv.targets.destination import check_destination, kept_places, refuse_inside
from yarnconv.targets.hf.config import (
    extended_config,
    extended_tokenizer_config,
    older_spelling_says,
    spell,
)
from yarnconv.targets.hf.files import CONFIG_FILE, RECORD_FILE, TOKENIZER_CONFIG
from yarnconv.targets.linking import SPACE, copied_bytes, copy_file, link_or_copy

COPIED_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".md"})
COPIED_NAMES = frozenset({"LICENSE", "NOTICE"})
# Of those, what is written anew, what points to weights that are not copied, and what would make something
# else of the directory: transformers applies an adapter that it finds.
NOT_COPIED = frozenset(
    {CONFIG_FILE, TOKENIZER_CONFIG, RECORD_FILE, "adapter_config.json", "genai_config.json"}
)
LARGEST_COPIED = 256 * MEBIBYTE
# Keys of the plan that engines have been seen without, where leaving them out changes what is computed.
UNREAD_ELSEWHERE = ("attention_factor", "mscale", "truncate")


@dataclass(frozen=True, slots=True, kw_only=True)
class HfJob:
    """What is to be written; nothing has touched the disk yet.

    documents: by file name. weights: files to link. copied: small files.
    """

    documents: dict[str, bytes]
    weights: tuple[Path, ...]
    copied: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the files that are linked or copied."""
        return sum(path.stat().st_size for path in (*self.weights, *self.copied))


@dataclass(frozen=True, slots=True, kw_only=True)
class HfArtefact:
    """What was written. files: the one to open first."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def _type_refusals(plan: ConversionPlan) -> Iterator[Inexpressible]:
    """RoPE types that the family's config class does not take."""
    types = plan.family.structure.rope_types
    found = spell(plan.rope.main)["rope_type"]
    if types is None or found in types:
        return
    taken = f"takes the RoPE types {' and '.join(types)} alone"
    if found == "yarn" and plan.family.structure.yarn_is_longrope:
        taken += ", and yarn for the name of longrope"
    yield Inexpressible(
        f"transformers' {plan.family.model_type} {taken}",
        where=f"config.json: rope_parameters.rope_type {found}",
        fix="Give --method ntk, which is a base, or write an ONNX model, which takes the plan.",
    )


def _group_refusals(plan: ConversionPlan) -> Iterator[Inexpressible]:
    """Layers that the family's class does not tell apart as the plan does."""
    layers, by_type = plan.description.layers, plan.family.structure.theta_by_layer_type is not None
    kinds = [group for group in plan.rope.groups if any(layers[i].attention.rotates for i in group.layers)]
    if (len(kinds) > 1 and not by_type) or any(group.scaling is None for group in kinds):
        yield Inexpressible(
            f"transformers' {plan.family.model_type} rotates all layers that rotate alike, this plan has "
            f"{len(kinds)} kinds of them",
            where="config.json: rope_parameters",
            fix="Write rope_parameters for all layers at once into config.json.",
        )
    truncates = {group.scaling.truncate for group in kinds if isinstance(group.scaling, Yarn)}
    if len(truncates) > 1:
        yield Inexpressible(
            "transformers reads one truncate for all layer types, this plan has both",
            where="config.json: rope_parameters.truncate",
            fix="Give --truncate or --no-truncate as the other layers have it.",
        )


def _growth_refusals(plan: ConversionPlan) -> Iterator[Inexpressible]:
    """Queries grow by the original context that the scaling counts from: there is one key for both."""
    growth, main = plan.description.layers[0].attention.query_growth, as_transformers(plan.rope.main)
    if growth is None or isinstance(main, Unscaled | Linear | DynamicNtk):
        return
    if main.original_context != growth.context:
        yield Inexpressible(
            f"queries grow by {growth.context} positions and the scaling counts from "
            f"{main.original_context}: transformers' {plan.family.model_type} has one key for both",
            where="config.json: rope_parameters.original_max_position_embeddings",
            fix=f"Give --original-context {growth.context}.",
        )


def part_refusals(config: Mapping[str, Any]) -> list[Inexpressible]:
    """A text model among other parts: a directory holds them all, and the plan is of the one."""
    if text_part(config) is config:
        return []
    return [
        Inexpressible(
            f"it is a {config.get('model_type')!s:.60}, whose text model is one part of several",
            where="config.json: text_config",
            fix="Write a GGUF or an ONNX model of its text model, or give a checkpoint of that alone.",
        )
    ]


def plan_refusals(plan: ConversionPlan) -> list[Inexpressible]:
    """What of a plan no config.json can say."""
    if isinstance(plan.rope.main, DynamicYarn):
        return [
            Inexpressible(
                "transformers has no RoPE type whose YaRN factor follows the length of the request",
                where="method dynamic-yarn",
                fix="Give --method yarn or dynamic-ntk, or write an ONNX model, which takes it.",
            )
        ]
    parts = part_refusals(plan.checkpoint.config)
    return [*parts, *_type_refusals(plan), *_group_refusals(plan), *_growth_refusals(plan)]


def _document(content: dict[str, Any], where: str) -> bytes:
    try:
        return (json.dumps(content, indent=2) + "\n").encode("ascii")
    except RecursionError:
        raise BadInput("the JSON is nested too deeply", where=where) from None


def _is_of_the_checkpoint(path: Path, directory: Path) -> bool:
    """Whether a small file is one of the directory's own, or a link into a store of the Hub's cache: who
    passes the result on must not pass on another file of this machine's.
    """
    resolved = path.resolve()
    store = resolved.parent
    return resolved.is_relative_to(directory.resolve()) or (
        store.name == "blobs" and store.parent.name.startswith("models--")
    )


def _small_files(directory: Path) -> tuple[Path, ...]:
    found = []
    for path in sorted(directory.iterdir()):
        named = path.suffix in COPIED_SUFFIXES or path.name in COPIED_NAMES
        if not named or path.name in NOT_COPIED or path.name.endswith(".index.json") or not path.is_file():
            continue
        if not _is_of_the_checkpoint(path, directory):
            fix = "Put the file itself in its place."
            raise BadInput("is a link to a file outside the checkpoint", where=path.name, fix=fix)
        if path.stat().st_size > LARGEST_COPIED:
            raise BadInput(f"{path.stat().st_size} bytes is more than such a file can hold", where=path.name)
        found.append(path)
    return tuple(found)


def _weight_files(plan: ConversionPlan) -> tuple[Path, ...]:
    shards = {ref.file.path.name: ref.file.path for ref in plan.checkpoint.tensors.values()}
    return tuple(shards[name] for name in sorted(shards))


def _index(plan: ConversionPlan) -> tuple[Path, ...]:
    """Copied and not linked: people edit JSON where it lies."""
    index = plan.checkpoint.directory / INDEX_FILE
    return (index,) if index.exists() else ()


def _notes(plan: ConversionPlan) -> tuple[str, ...]:
    rope, notes = plan.rope, []
    main, spelled = rope.main, spell(rope.main)
    if isinstance(main, NtkAware) and not isinstance(main, DynamicNtk):
        notes.append(
            f"transformers has no NTK-aware type: it is written as plain RoPE with rope_theta "
            f"{ntk_base(main):.9g}, which is the same."
        )
    unread = [key for key in UNREAD_ELSEWHERE if key in spelled]
    if unread and isinstance(main, Yarn):
        notes.append(
            f"There are releases of transformers 4, vLLM and SGLang that do not read {' and '.join(unread)}; "
            "which, is not known here. transformers 4.57 and 5 do."
        )
    if isinstance(main, Yarn):
        notes.append(
            "transformers 4.46 takes max_position_embeddings for YaRN's original context, and so another "
            "ramp; 4.51 and later do not."
        )
    if isinstance(main, Yarn) and main.factor * main.original_context != rope.target_context:
        notes.append(
            "Some releases of transformers 4, and SGLang, work the factor out as max_position_embeddings by "
            f"the original context, {rope.target_context / main.original_context:.9g} here; which is exact "
            "with a --target-context."
        )
    if not older_spelling_says(plan):
        notes.append(
            f"Only rope_parameters can say what each type of {plan.family.model_type}'s layers has: "
            "transformers 4, and engines that read rope_scaling and rope_theta alone, compute another model."
        )
    if "auto_map" in plan.checkpoint.config:
        notes.append("auto_map is left out: the plan is one of transformers' own class, no code is copied.")
    return tuple(notes)


def prepare(plan: ConversionPlan) -> HfJob:
    """Everything that will be written. Raises the first refusal; writes nothing."""
    if found := plan_refusals(plan):
        raise found[0]
    directory = plan.checkpoint.directory
    documents = {
        CONFIG_FILE: _document(extended_config(plan), CONFIG_FILE),
        RECORD_FILE: _document({"target": "hf", **plan.provenance}, RECORD_FILE),
    }
    tokenizer = directory / TOKENIZER_CONFIG
    if tokenizer.exists():
        document = extended_tokenizer_config(read_json_object(tokenizer, LARGEST_COPIED), plan.rope)
        documents[TOKENIZER_CONFIG] = _document(document, TOKENIZER_CONFIG)
    return HfJob(
        documents=documents,
        weights=_weight_files(plan),
        copied=(*_small_files(directory), *_index(plan)),
        notes=_notes(plan),
    )


def default_name(plan: ConversionPlan) -> str:
    """A directory name that says what it holds."""
    return f"{model_name(plan.checkpoint.directory)}{plan.rope.suffix}-hf"


def _check_place(plan: ConversionPlan, destination: Path, *, replace: bool) -> None:
    check_destination(destination, kept_places(plan), replace=replace)
    refuse_inside(destination, plan.checkpoint.directory, "the checkpoint")


def emit(
    plan: ConversionPlan, job: HfJob, destination: Path, advance: Advance, *, replace: bool
) -> HfArtefact:
    """Write the directory; it appears whole or not at all."""
    _check_place(plan, destination, replace=replace)
    needed = copied_bytes(job.weights, destination.resolve().parent)
    needed += sum(path.stat().st_size for path in job.copied)
    check_free_space(destination, needed + sum(map(len, job.documents.values())), SPACE)
    with staged_directory(destination, replace=replace) as directory:
        linked = [link_or_copy(path, directory / path.name, advance) for path in job.weights]
        for path in job.copied:
            copy_file(path, directory / path.name, advance)
        for name, content in job.documents.items():
            (directory / name).write_bytes(content)
    names = [*job.documents, *(path.name for path in (*job.weights, *job.copied))]
    notes = list(job.notes)
    if any(linked):
        notes.append("The checkpoint's weights are hard-linked: who changes them in place changes both.")
    return HfArtefact(files=tuple(destination / name for name in names), notes=tuple(notes))
