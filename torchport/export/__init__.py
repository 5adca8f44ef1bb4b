"""Exports trained weights: `main.pt`, `main.onnx`, `main.pt2`, `signature.json`, `export.json`.

Recipes are not here, but in the `export/` at the top of the tree.
"""
