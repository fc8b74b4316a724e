"""What a model is made of: dimensions, layers, and the names a family gives its tensors."""
