"""Reads ONNX graphs and calibration data and writes INT8 graphs and `int8.json`."""
