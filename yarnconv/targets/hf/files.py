"""What the files of an extended checkpoint are called, beside the weights, which keep their names."""

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
RECORD_FILE = "yarnconv.json"  # how it was made
