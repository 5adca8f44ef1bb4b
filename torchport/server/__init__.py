"""`torchport serve`: TorchServe's REST and gRPC APIs, archives and handlers, without Java.

The way of a request, module by module:

    http_protocol -> inference_api -> registry -> model_version (queue) -> worker_process
                                                     | socket pair, wire |
                                                  worker/ (the child): handler -> answer

The front is one process with one event loop; each worker is a process of its own.
"""
