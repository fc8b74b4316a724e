"""What the files of an engine's directory are called, and what is one."""

from pathlib import Path

ENGINE_FILE = "model.engine"
MODEL_FILE = "model.onnx"  # the graph that was parsed; the checkpoint's weights are not beside it
DATA_FILE = "model.onnx.data"  # what of the graph was made and not taken from the checkpoint: the tables
SIDECAR = "yarnconv.json"
CARD_FILE = "README.md"
TRITON_DIRECTORY = "triton"  # a model repository


def engine_directory(path: Path) -> Path:
    """The directory of an engine that was named itself; anything else as it is."""
    return path.parent if path.name == ENGINE_FILE and path.is_file() else path


def is_engine(path: Path) -> bool:
    """Whether it is an engine's directory: an extended checkpoint has such a file too, and a config.json."""
    return (path / SIDECAR).is_file() and not (path / "config.json").exists()
