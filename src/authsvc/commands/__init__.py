"""The subcommands of ``authsvc`` that look after tenants and their keys."""
