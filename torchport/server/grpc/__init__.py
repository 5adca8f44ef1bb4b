"""gRPC: reads messages of TorchServe's services and of the Open Inference Protocol, and answers them."""
