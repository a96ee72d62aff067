"""The before/after benchmark of the performance guide: what the declared indexes gain and cost.

`scratch` makes a database of its own, `fill` its rows, `arms` the schemas that are compared,
`queries` what the program asks; `reads`, `writes` and `traffic` measure, `report` and `charts`
show. The management command `bench_db` only connects them.
"""
