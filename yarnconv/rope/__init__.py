"""RoPE: the scalings, their float64 tables, their spellings in a config, and what a user asked for."""
