"""Telling an existing artefact from a checkpoint, and the options that have no meaning with one."""

from collections.abc import Iterable
from pathlib import Path

import typer

from yarnconv.errors import BadInput

# what of a command is for a conversion only: an artefact's own form, weights and vocabulary stay
OF_CONVERSIONS = (
    *("dtype", "kv", "dialect", "last_token_only", "int4_head", "int4_embeddings", "link_weights"),
    *("outtype", "imatrix", "pre", "split_max_size", "only_split", "split_jobs"),
    "allow_runtime_truncation",
    *("pretraining_tokens", "revision"),
)
OF_EXTENSIONS = ("trust_generic_keys",)


def is_gguf(model: str) -> bool:
    """Whether MODEL is a file: a checkpoint is a directory, and no Hub id ends so."""
    path = Path(model)
    return path.is_file() or (path.suffix == ".gguf" and not path.is_dir())


def is_onnx(model: str) -> bool:
    """Whether MODEL is an ONNX file or directory and no checkpoint."""
    path = Path(model)
    if path.is_dir():
        checkpoint = (path / "config.json").exists() and any(path.glob("*.safetensors"))
        return not checkpoint and any(path.glob("*.onnx"))
    return path.suffix == ".onnx" and path.is_file()


def _refuse_given(context: typer.Context, names: Iterable[str], what: str, fix: str) -> None:
    """Raise BadInput for the first option that was given, its default spelled out too: nothing asked for is
    dropped.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            where = ", ".join((*parameter.opts, *parameter.secondary_opts))
            raise BadInput(what, where=where, fix=fix)


def refuse_conversion_options(context: typer.Context, artefact: str) -> None:
    """The options of a conversion, where MODEL is an artefact. artefact: such as a GGUF."""
    _refuse_given(
        context,
        OF_CONVERSIONS,
        f"has no meaning with {artefact} that is there already",
        "Leave it out, or convert from the checkpoint.",
    )


def refuse_extension_options(context: typer.Context) -> None:
    """The options of an extension, where MODEL is a checkpoint."""
    what = "is for an artefact that is there already"
    _refuse_given(context, OF_EXTENSIONS, what, "Leave it out.")
