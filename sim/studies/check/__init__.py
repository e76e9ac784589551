"""Whether a policy keeps what it promises: `voltana-check`.

`histories` records what policies are shown in runs driven at random; `controllers` and `routers` show that to the
policy, in ways between which its answers must not differ; `engines` runs it on both engines; `command` makes the table.
"""
