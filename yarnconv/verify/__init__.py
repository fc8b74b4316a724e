"""The proof: an artefact run by its own runtime, held against the PyTorch reference."""
