"""The process of a server, from its socket to the end of the drain."""
