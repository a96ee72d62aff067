#!/usr/bin/env python
"""Django's command line for the MCP Registry Gateway; `mcp-gateway` is the same with dashes."""

from gateway.cli import main

if __name__ == "__main__":
    main()
