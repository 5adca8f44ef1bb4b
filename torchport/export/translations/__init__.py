"""ONNX translations of operators that torch's exporter has none or a wrong one for, one module each."""
