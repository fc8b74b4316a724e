"""Targets: each turns a plan into an artefact, or refuses before it writes a byte."""
