"""What is written beside a GGUF, so that runtimes can be started with it."""
