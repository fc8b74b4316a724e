"""yarnconv: extend a checkpoint's context with YaRN, write it for a runtime, prove it."""

__version__ = "0.1.0"
