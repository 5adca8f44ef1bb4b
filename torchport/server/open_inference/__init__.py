"""The Open Inference Protocol, by REST or gRPC: reads tensors of its datatypes, and writes metadata of
models.
"""
