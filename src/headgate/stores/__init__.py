"""Where the state of keys is kept: one module for each engine, opened by the scheme of its URL."""
