"""The TensorRT target: an engine of the concat-form graph, and what proves that it carries the plan."""
