"""Reads a recipe and writes `weights.pt`, `training.json` and the assets."""
