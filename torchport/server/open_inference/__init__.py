"""The Open Inference Protocol's tensors and metadata, for REST and gRPC."""
