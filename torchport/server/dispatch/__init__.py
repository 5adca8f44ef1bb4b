"""The way of requests to workers and back: queues, pools, processes."""
