"""What the files of an engine's directory are called."""

ENGINE_FILE = "model.engine"
MODEL_FILE = "model.onnx"  # the graph that was parsed; the checkpoint's weights are not beside it
DATA_FILE = "model.onnx.data"  # what of the graph was made and not taken from the checkpoint: the tables
SIDECAR = "yarnconv.json"
CARD_FILE = "README.md"
TRITON_DIRECTORY = "triton"  # a model repository
