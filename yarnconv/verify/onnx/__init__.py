"""The check of an ONNX model."""
