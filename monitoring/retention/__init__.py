"""How old rows of the growing tables go: which, when, and what would go before it goes.

`tables` says what may be trimmed, `conditions` compiles a policy's conditions, `target` joins
both into what a policy means in SQL; `preview` shows it and `run` does it. The logs, which are
partitioned, lose whole partitions instead: `partitions`, by the same policies. Nothing is imported
here: the models check a policy with `target`, and `run` needs the models.
"""
