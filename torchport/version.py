"""The version of torchport."""

__version__ = "0.1.0"
