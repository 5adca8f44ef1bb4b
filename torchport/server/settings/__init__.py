"""Reads `config.properties`, the environment and the command line into checked settings."""
