"""Packages verified artifacts as `NAME-VERSION.mar`, with the configuration to serve."""
