"""How far a recipe's model has come: reads `training.json`, `export.json` and `parity.json` back, checks
them, and runs the model in eager PyTorch.
"""
