"""Checkpoints for transformers and the engines that read its config.json."""
