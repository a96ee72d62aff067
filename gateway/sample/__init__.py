"""A small, real MCP server, so that a fresh gateway has something to answer with.

Run it with `python -m gateway.sample`; `up` does, and registers it as `sample`.
"""
