"""The middlewares that refuse requests before a route sees them: keys, hosts, and limits of bodies."""
