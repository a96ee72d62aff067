"""Alerts: figures of `performance_monitoring` against rules, and who is told when one fires.

`rules` decides (no clock, no database), `metrics` knows what can be watched, `figures` finds a
rule's value, `evaluate` runs a pass, `events` keeps what changed and queues the notifications,
`channels` knows where they go and `deliver` brings them there.
"""
