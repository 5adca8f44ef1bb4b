"""The worker process of `torchport serve`: loads models and answers batches.

It ends when the front is gone. It imports neither the library nor `torchport_runtime`: the archive's own
copy of the runtime must be found first. torch is imported by handlers and backends that need it, and by
nothing here.
"""
