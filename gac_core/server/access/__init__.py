"""The middlewares that refuse requests before a route sees them: keys, hosts, limits of bodies, and the drain."""
