"""The event-skipping engine: the record of `voltana.sim.reference` without running every iteration.

Between two changes of a decode batch the KV tokens grow by a constant and an iteration's time and energy are lines in
them, so any number of iterations sum to a quadratic. The engine jumps from change to change: a request joins or
leaves, a clock comes into force, the controller's answer may differ, the plant's line bends. What happens at a change
is written in the same order as in the reference, which defines the semantics; a property test holds the two together.
"""

from voltana.sim.fast.cluster import FastCluster

__all__ = ["FastCluster"]
