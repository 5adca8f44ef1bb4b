"""Reads `weights.pt` and writes `main.pt`, `main.onnx`, `main.pt2`, `signature.json` and `export.json`;
recipes are in the `export/` at the top of the tree.
"""
