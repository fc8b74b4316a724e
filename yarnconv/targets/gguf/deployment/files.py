"""Which files are written beside a GGUF, by what `--emit` names."""

from collections.abc import Collection
from pathlib import Path

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import method_name
from yarnconv.targets.beside import Beside, FileBeside
from yarnconv.targets.gguf.deployment.modelfile import modelfile
from yarnconv.targets.gguf.deployment.server import (
    carrier,
    dynamic_files,
    needs_flags,
    presets_name,
    static_script,
)
from yarnconv.targets.gguf.launch import KEY_SHIFT_WARNING, key_shift_warning
from yarnconv.targets.gguf.writer import split_paths


def carried_plan(plan: ConversionPlan, wanted: Collection[str]) -> ConversionPlan:
    """The plan that the GGUF itself is to carry: a plain one where presets beside it carry a dynamic one.

    Raises Inexpressible where they cannot.
    """
    if not needs_flags(plan.rope) or "llama-server" not in wanted:
        return plan
    if "ollama" in wanted:
        raise Inexpressible(
            "a Modelfile has no parameters for YaRN or a RoPE base",
            where=f"method {method_name(plan.rope.main)}",
            fix="Leave ollama out of --emit, or choose --method yarn.",
        )
    return carrier(plan)


def _check_name(name: str) -> None:
    """Refuse what would have to be escaped in a line of every format there is."""
    if not name.isprintable() or "\\" in name:
        raise BadInput(
            f"{name!r} holds letters that the files beside it cannot name",
            where="-o",
            fix="Give another name.",
        )


def _dynamic_notes(plan: ConversionPlan, stem: str) -> list[str]:
    method, factor = method_name(plan.rope.main), plan.rope.main_group.buckets[-1].factor
    carries = f"{presets_name(stem)} carries {method} x{factor:g}"
    notes = [f"The GGUF itself is plain; {carries}, a preset for each factor."]
    return [*notes, KEY_SHIFT_WARNING] if key_shift_warning(plan.rope) else notes


def files_beside(plan: ConversionPlan, destination: Path, parts: int, wanted: Collection[str]) -> Beside:
    """What to write beside a GGUF of so many parts. plan: what is to be served.

    Raises BadInput where the destination's name cannot be written in one of them.
    """
    if not wanted:
        return Beside()
    stem, model = destination.stem, split_paths(destination, parts)[0].name
    _check_name(model)
    dynamic = needs_flags(plan.rope)
    files: list[FileBeside] = []
    notes = _dynamic_notes(plan, stem) if dynamic else []
    if "ollama" in wanted:
        if parts > 1:
            fix = "Leave out --split-max-size, or leave ollama out of --emit."
            raise BadInput("a Modelfile names one file", where="--emit ollama", fix=fix)
        made = modelfile(plan, stem, model)
        files += made.files
        notes += made.notes
    if "llama-server" in wanted:
        if dynamic:
            files += dynamic_files(plan, stem, model)
        else:
            files.append(static_script(plan.rope, stem, model))
    if taken := {file.name for file in files} & {path.name for path in split_paths(destination, parts)}:
        fix = "Give the model a name that ends in .gguf."
        raise BadInput("would be the model and a file beside it", where=taken.pop(), fix=fix)
    return Beside(files=tuple(files), notes=tuple(notes))
