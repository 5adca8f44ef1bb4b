"""HTTP/2 for gRPC, on the event loop of the front: frames, headers, flow control, calls."""
