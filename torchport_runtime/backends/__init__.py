"""Backends that run artifacts: ONNX Runtime, TorchScript, torch.export, AOTInductor."""
