"""Runtimes, each behind one module: a passage of tokens goes in, logits come out."""
