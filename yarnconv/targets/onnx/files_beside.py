"""What lies beside an ONNX model that is to be extended: the files of its weights, and what goes with it."""

from collections.abc import Sequence
from pathlib import Path

from yarnconv.errors import BadInput
from yarnconv.targets.check_workflow import WORKFLOW_FILE
from yarnconv.targets.onnx.cache_reading import MODEL_CONFIG
from yarnconv.targets.onnx.extended_graph import ExtendedGraph
from yarnconv.targets.onnx.files import CARD_FILE, CONFIG_FILE, TABLES_FILE
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.templates import runner_names

BESIDE = frozenset({".json", ".jinja", ".model", ".txt"})  # of a tokenizer, of processors, of a licence


def _is_own_file(path: Path, model: OnnxModel) -> bool:
    """A regular file of this directory; links are followed as `reader` follows them."""
    inside = path.resolve().parent == model.path.resolve().parent
    return path.is_file() and (inside or not path.is_symlink())


def written_names(model: OnnxModel) -> set[str]:
    """What may be written anew into the directory of the extended model."""
    fixed = {CONFIG_FILE, CARD_FILE, TABLES_FILE, WORKFLOW_FILE}
    return {model.path.name, *fixed, *runner_names("onnx")}


def data_files(model: OnnxModel, graph: ExtendedGraph) -> tuple[Path, ...]:
    """What the weights that stay lie in."""
    from onnx import TensorProto

    names, tables = set(), {tensor.name for tensor in graph.tables}
    for tensor in graph.proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL or tensor.name in tables:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        if len(place) != len(tensor.external_data):
            what = f"{tensor.name[:80]} states the place of its data twice"
            raise BadInput(what, where=model.path.name, fix="Export the model again.")
        names.add(place["location"])
    own = {MODEL_CONFIG, *written_names(model)}
    if clash := names & own:  # what is written under that name would go through the link into the source
        what = f"weights lie in a file called {min(clash)[:80]}, a name that is taken"
        raise BadInput(what, where=model.path.name, fix="Export the model again.")
    return tuple(model.directory / name for name in sorted(names))


def files_beside(model: OnnxModel, data: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """(what is copied, names of what is left out)."""
    own = written_names(model) | {path.name for path in data} | {file.path.name for file in model.files}
    copied, left = list[Path](), list[Path]()
    for path in sorted(model.directory.iterdir()):
        if path.name in own:
            continue
        fits = path.suffix in BESIDE and path.name != MODEL_CONFIG and _is_own_file(path, model)
        (copied if fits else left).append(path)
    return tuple(copied), tuple(path.name for path in left)


def check_alone(model: OnnxModel) -> None:
    """Refuse a model that may be one of several that run together."""
    others = sorted(p.name for p in model.directory.glob("*.onnx") if p.name != model.path.name)
    if others:
        what = f"{others[0][:80]} lies beside it: only a model in one piece is extended"
        raise BadInput(what, where=model.path.name, fix="Put what does not belong to it elsewhere.")
