"""`python -m voltana.live.router` is `voltana-router`."""

from voltana.live.router.command import main

main()
