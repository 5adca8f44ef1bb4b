"""Faster ways to run what has passed: INT8 graphs, and the configuration to serve with."""
