"""MODEL on the command line: a local directory, or a Hub id of which only the needed files come."""

import re
from pathlib import Path

from yarnconv.errors import BadInput

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_FILE = "generation_config.json"
WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
ALL_FILES = (*CONFIG_FILES, GENERATION_FILE, *TOKENIZER_FILES, *WEIGHT_FILES)
# What a checkpoint has besides, for those who pass it on.
WHOLE = (*ALL_FILES, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")


def model_name(directory: Path) -> str:
    """A name for people: the directory's, or the model's where it lies in the Hub's cache
    (models--org--name/snapshots/<commit>).
    """
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots":
        return resolved.parent.parent.name.split("--")[-1]
    return resolved.name


def locate(model: str, *, revision: str | None, files: tuple[str, ...]) -> Path:
    """The directory that holds the model's `files` (patterns), downloaded if MODEL is a Hub id."""
    directory = Path(model)
    if directory.is_dir():
        if revision is not None:
            raise BadInput(f"{model} is a local directory, which has no revisions", where="--revision")
        return directory
    if directory.exists():
        raise BadInput(
            "MODEL is a file, not a checkpoint directory",
            where=model,
            fix="Give the checkpoint's directory. (An existing GGUF is for `plan`, `gguf` and `inspect`.)",
        )
    if not _HUB_ID.fullmatch(model):
        raise BadInput(
            "no such directory",
            where=model,
            fix="Give a checkpoint directory or a Hub id (name/model).",
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"neither a local directory nor to be had from the Hub ({first_line})",
            where=model,
            fix="Check the name, --revision, the network and, for a gated model, `hf auth login`.",
        ) from None
