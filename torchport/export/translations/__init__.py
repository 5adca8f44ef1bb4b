"""ONNX translations of operators that torch's exporter lacks or translates wrongly.

There is one module for each.
"""
