"""The check of an extended checkpoint."""
