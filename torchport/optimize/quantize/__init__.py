"""Quantises ONNX graphs with calibration data, and writes `int8.json`."""
