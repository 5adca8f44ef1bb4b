"""Reads an artifact and runs it by ONNX Runtime, TorchScript, torch.export or AOTInductor."""
