"""The before/after benchmark of the performance guide: what the declared indexes gain and cost.

`fill` makes the rows of a scratch database (`registry.db.scratch`), `arms` the schemas that are
compared, `queries` what the program asks, `asking` as whom; `reads`, `writes`, `keys` and
`traffic` measure, `report` and `charts` show, `growth` sets two runs side by side. `indexes`
measures each index of the catalogue by itself. The management command `bench_db` only connects
them.
"""
