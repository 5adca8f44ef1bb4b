"""Trains a recipe's model: writes `weights.pt`, `training.json` and the assets."""
