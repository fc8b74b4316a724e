"""A Hugging Face checkpoint directory: its config and its tensors by name, one file or many."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.json_files import MEBIBYTE, read_json_object
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.safetensors_file import TensorRef, open_safetensors
from yarnconv.errors import BadInput

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    if not directory.is_dir():
        raise BadInput("no such directory", where=str(directory))
    path = directory / "config.json"
    if not path.exists():
        raise BadInput(
            f"there is no config.json in {directory}",
            where="config.json",
            fix="Give the directory of a Hugging Face checkpoint.",
        )
    return read_json_object(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An open checkpoint. `tensors` is in the order of files and of offsets within them, so that
    whoever walks it reads the disk forwards.

    described: whether it is a config.json alone, and nobody has its tensors.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    described: bool = False

    def tensor(self, name: str) -> TensorRef:
        """The tensor of that name; KeyError if there is none."""
        return self.tensors[name]


def _plain_file_name(name: Any) -> str:
    """A file name of the index, which must lie in the directory itself.

    Only the name is judged: the Hub's cache links its files to a store elsewhere.
    """
    if (
        not isinstance(name, str)
        or not name
        or name in {".", ".."}
        or any(forbidden in name for forbidden in ("/", "\\", "\0"))
    ):
        raise BadInput(
            f"weight_map points to {name!r}, which is not a file name in the checkpoint's directory",
            where=INDEX_FILE,
        )
    return name


def _shards_by_index(directory: Path) -> tuple[list[str], dict[str, str]]:
    weight_map = read_json_object(directory / INDEX_FILE, 256 * MEBIBYTE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput("weight_map is not an object that names tensors", where=INDEX_FILE)
    by_tensor = {name: _plain_file_name(file) for name, file in weight_map.items()}
    shards = sorted(set(by_tensor.values()))
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise BadInput(f"weight_map names {shard!r}, not a safetensors file", where=INDEX_FILE)
        if not (directory / shard).is_file():
            raise BadInput(
                f"the shard {shard} is missing",
                where=INDEX_FILE,
                fix="Download the checkpoint again; it is incomplete.",
            )
    return shards, by_tensor


def _no_safetensors(directory: Path) -> BadInput:
    pickled = sorted(p.name for p in directory.glob("*.bin")) + sorted(
        p.name for p in directory.glob("*.pt*")
    )
    if pickled:
        return BadInput(
            f"the weights are pickled ({pickled[0]}), and a pickle can run any code when it is loaded",
            where=str(directory),
            fix=(
                'Convert them where you trust them: python -c "from transformers import '
                "AutoModelForCausalLM as M; M.from_pretrained('IN').save_pretrained('OUT')\""
            ),
        )
    return BadInput(f"there is no {SINGLE_FILE} and no {INDEX_FILE}", where=str(directory))


def describe_checkpoint(config: Path) -> Checkpoint:
    """What a config.json says of a checkpoint that is not at hand."""
    return Checkpoint(directory=config.parent, config=read_json_object(config), tensors={}, described=True)


@contextmanager
def open_checkpoint(directory: Path) -> Iterator[Checkpoint]:
    """Open config and shards; every header is checked, no tensor is read."""
    config = read_config(directory)
    by_tensor: dict[str, str] = {}
    if (directory / INDEX_FILE).exists():
        shards, by_tensor = _shards_by_index(directory)
    elif (directory / SINGLE_FILE).exists():
        shards = [SINGLE_FILE]
    else:
        raise _no_safetensors(directory)
    files: list[MappedFile] = []
    tensors: dict[str, TensorRef] = {}
    try:
        for shard in shards:
            file, found = open_safetensors(directory / shard)
            files.append(file)
            for ref in sorted(found.values(), key=lambda ref: ref.offset):
                if ref.name in tensors:
                    raise BadInput(
                        f"{ref.name} stands in {tensors[ref.name].file.path.name} as well",
                        where=shard,
                    )
                if by_tensor and by_tensor.get(ref.name) != shard:
                    raise BadInput(f"{ref.name} is not what weight_map says of this file", where=shard)
                tensors[ref.name] = ref
        for name, shard in by_tensor.items():
            if name not in tensors:
                raise BadInput(f"{name} is missing", where=shard)
        yield Checkpoint(directory=directory, config=config, tensors=tensors)
    finally:
        for file in files:
            file.close()
