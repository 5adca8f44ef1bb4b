"""A request's way to a worker and back: the queue, the pool, and the workers' processes as the front sees
them.
"""
