"""An authorization microservice: may user X do Y, for many tenants, over HTTP."""

__version__ = "0.1.0"
