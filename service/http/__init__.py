"""HTTP: translates requests to use-cases of the engine and answers back. One module a resource."""
