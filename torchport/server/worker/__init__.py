"""The child process of `torchport serve`: loads one model and answers batches until the front is gone.

It imports neither the library nor `torchport_runtime`: the archive's own copy of that is to be found
first. torch is imported by handlers and backends that need it, and by nothing here.
"""
