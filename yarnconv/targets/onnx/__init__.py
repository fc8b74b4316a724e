"""ONNX: a decoder graph built from the plan, its weights streamed beside it."""
