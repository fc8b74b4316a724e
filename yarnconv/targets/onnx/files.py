"""What the files of a model's directory are called."""

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
TABLES_FILE = "model.onnx.tables"  # of a model whose context was extended later
CONFIG_FILE = "genai_config.json"
CARD_FILE = "README.md"
