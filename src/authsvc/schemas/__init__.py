"""What requests and answers look like: validation at the edge, and the same in OpenAPI."""
