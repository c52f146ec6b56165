"""From the body of a request to the engine, and from its answers to bodies and streams."""
