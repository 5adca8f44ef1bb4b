"""HTTP/1.1 and TLS: reads requests from sockets and writes the answers."""
