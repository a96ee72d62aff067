"""The roof: traffic, and what touches every app."""

__version__ = "0.1.0"
