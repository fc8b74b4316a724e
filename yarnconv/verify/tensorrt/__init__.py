"""The check of a TensorRT engine."""
