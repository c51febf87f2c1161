"""One emulated decode step: operations, weight addresses, reuse distance, routing, numerical gate."""
