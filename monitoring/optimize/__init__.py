"""Brings indexes, functions, views and statistics to what the code declares.

`state` reads what is declared and what there is, `plan` compares the two and says what to do,
`run` does it, `output` shows it. The management command only connects them.
"""
