"""A PostgreSQL of their own for the tests. (placeholder, being written)"""
