"""REST: reads HTTP requests, and writes answers, OpenAPI descriptions and Prometheus metrics."""
