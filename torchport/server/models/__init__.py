"""The models of a server: reads archives and snapshots, unpacks and registers."""
