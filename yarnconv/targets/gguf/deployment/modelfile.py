"""Ollama's Modelfile: the file, its context, its chat format, and where an answer ends.

Its grammar (Ollama's docs/modelfile and parser): one instruction a line; a value between three quotation
marks may run over lines and ends where three of them end a line; there are no escapes, and letters that Go
cannot print are dropped. So a value that this cannot carry is not written.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from yarnconv import __version__
from yarnconv.checkpoint.hub import GENERATION_FILE
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.checkpoint.tokenizer import (
    SPECIAL_ROLES,
    TokenizerFiles,
    added_tokens,
    read_tokenizer,
    special_tokens,
    token_text,
)
from yarnconv.errors import BadInput
from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.targets.beside import MARK, Beside, FileBeside
from yarnconv.targets.gguf.deployment.chat_format import NotLearned, learn_chat_format
from yarnconv.targets.gguf.deployment.go_template import go_template, stands_for_itself
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.launch import OLLAMA_CAVEAT, key_shift_warning
from yarnconv.targets.templates import plain_name, render

MOST_STOPS = 64
TRIMS = "The checkpoint's chat template strips blanks off the ends of texts; the Modelfile's does not."


def modelfile_name(stem: str) -> str:
    """The Modelfile beside a model, by its name without .gguf."""
    return f"{stem}.Modelfile"


def ollama_name(stem: str) -> str:
    """What to call a model there, by its file's name without .gguf."""
    return plain_name(stem).lower()


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _special_texts(files: TokenizerFiles) -> dict[str, str]:
    """The special tokens' texts by the names that chat templates have for them, such as bos_token."""
    older = files.directory / "special_tokens_map.json"
    named = {**(read_json_object(older) if older.exists() else {}), **files.config}
    found = {f"{role}_token": token_text(named, role) for role in SPECIAL_ROLES}
    return {name: text for name, text in found.items() if text is not None}


def _end_texts(files: TokenizerFiles, config: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The texts of all tokens that end an answer, and the ids of those whose text is not known here."""
    ids = _ids(config.get("eos_token_id"))
    generation = files.directory / GENERATION_FILE
    if generation.exists():
        ids += _ids(read_json_object(generation).get("eos_token_id"))
    special = special_tokens(files, config, int(config["vocab_size"]))
    ids += [special.ids[role] for role in ("eos", "eot") if role in special.ids]
    texts = {token.id: token.content for token in added_tokens(files)}
    known = [texts[i] for i in dict.fromkeys(ids) if i in texts]
    named = token_text(files.config, "eos")
    if named is not None:
        known.append(named)
    unknown = [] if named is not None else [i for i in dict.fromkeys(ids) if i not in texts]
    return [text for text in dict.fromkeys(known) if text], unknown


def _stop_values(texts: Iterable[str]) -> tuple[list[str], int]:
    """Texts as values of `PARAMETER stop`, and how many cannot be one."""
    values: list[str] = []
    lost = 0
    for text in texts:
        if len(values) == MOST_STOPS or len(text) > 200 or not all(map(stands_for_itself, text)):
            lost += 1
        else:
            values.append(f'"""{text}"""' if '"' in text else f'"{text}"')
    return values, lost


def _learned(files: TokenizerFiles, config: Mapping[str, Any]) -> tuple[str, bool]:
    """The checkpoint's chat template in Go's language, without the token that llama.cpp puts first by itself;
    and whether it strips blanks off texts, which this does not.

    Raises NotLearned.
    """
    template = files.chat_templates.get("default")
    if template is None:
        raise NotLearned("the checkpoint has none")
    chat = learn_chat_format(template, _special_texts(files), str(files.directory))
    first = token_text(files.config, "bos") or ""
    adds = special_tokens(files, config, int(config["vocab_size"])).adds.get("bos")
    if first and adds is None and (chat.opening.startswith(first) or chat.system[0].startswith(first)):
        raise NotLearned("it begins with a token of which the tokenizer's files do not say who adds it")
    return go_template(chat, first if adds else ""), chat.trims


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def modelfile(deployment: Deployment) -> Beside:
    """The Modelfile of a static plan, and what to say of it."""
    plan, stem = deployment.served, deployment.stem
    if deployment.parts > 1:
        fix = "Leave out --split-max-size, or leave ollama out of --emit."
        raise BadInput("a Modelfile names one file", where="--emit ollama", fix=fix)
    files = read_tokenizer(plan.checkpoint.directory)
    template: str | None
    extended = not isinstance(plan.rope.main, Unscaled)
    notes = [OLLAMA_CAVEAT] if extended else []
    try:
        template, trims = _learned(files, plan.config)
        if trims:
            notes.append(TRIMS)
    except NotLearned as reason:
        why = _one_line(str(reason))
        template = None
        notes.append(f"The Modelfile has no TEMPLATE: of the checkpoint's chat template, {why}.")
    ends, unknown = _end_texts(files, plan.config)
    stops, lost = _stop_values(ends)
    if lost:
        notes.append(f"{lost} tokens that end an answer cannot be written in a Modelfile as text.")
    if unknown:
        listed = ", ".join(map(str, unknown[:8]))
        notes.append(f"The text of tokens that end an answer ({listed}) is not known here.")
    values = {
        "mark": MARK,
        "version": __version__,
        "method": method_name(plan.rope.main),
        "factor": plan.rope.main_group.buckets[-1].factor,
        "extended": extended,
        "name": ollama_name(stem),
        "file": modelfile_name(stem),
        "model": deployment.model,
        "context": plan.rope.target_context,
        "stops": stops,
        "template": template,
        "notes": notes,
        "warning": key_shift_warning(plan.rope),
    }
    file = FileBeside(name=modelfile_name(stem), text=render("gguf/Modelfile", values))
    return Beside(files=(file,), notes=tuple(notes))
