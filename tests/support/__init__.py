"""What tests share: tiny checkpoints, tokenizers, the transformers reference, llama.cpp."""
