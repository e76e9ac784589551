"""Latency prediction: the profile table, EcoPred and its fit, and where a run finds a fitted one."""
