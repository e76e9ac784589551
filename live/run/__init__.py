"""The live harness: servers, clocks, router, client and record put together (`voltana-live`)."""
