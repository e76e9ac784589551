"""`python -m live.router` is `voltana-router`."""

from live.router.command import main

main()
