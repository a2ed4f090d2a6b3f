"""HTTP: translates requests to use-cases of the engine, and their results to responses. A module for each resource."""
