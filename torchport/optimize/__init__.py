"""Finds faster ways to run verified models: INT8 graphs, and serving configurations."""
