"""`torchport serve`: TorchServe's REST and gRPC APIs, archives and handlers, without Java.

The way of a request, folder by folder:

    http or grpc -> api -> models -> dispatch (queue, pool)
                                         | socket pair, wire |
                                     worker/ (the child): handler -> answer

The front is one process with one event loop; each worker is a process of its own.
"""
