"""The bodies of requests, as pydantic models; docs/server.md describes them."""
