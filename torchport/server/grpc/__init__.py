"""gRPC: TorchServe's services, the Open Inference Protocol's, and health checks."""
