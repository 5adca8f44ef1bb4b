"""Which models there are: reads archives and snapshots, and writes unpacked folders and snapshots."""
