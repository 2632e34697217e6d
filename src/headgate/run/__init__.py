"""``headgate run``: a file of requests through any HTTP API, at the full speed that its limits allow."""
