"""The check of a GGUF, by llama.cpp."""
