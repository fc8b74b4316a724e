"""What any kind of artefact carries of RoPE: as groups of layers, as claims about it, as findings."""
