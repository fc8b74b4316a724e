"""A checkpoint on disk: config, lazily mapped safetensors shards, tokenizer files. Executes nothing."""
