"""The trained model and its records, read back and checked.

Reads `training.json`, `export.json` and `parity.json`, and runs the model in eager PyTorch.
"""
