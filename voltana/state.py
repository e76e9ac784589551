"""The border between a world and a policy: what a policy is shown and what it answers.

Everything here is immutable and holds plain numbers that a live system can know: telemetry of the instance, counts
that the router keeps of what it sent itself. Times are seconds since the start of the run; there is no wall clock.
A request's output length is not here, because nobody knows it before the request ends.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, Phase] = ("prefill", "decode")


class Slo(NamedTuple):
    """Latency objectives: time to first token, and mean inter-token latency of a request."""

    ttft_s: float
    itl_s: float


class RequestView(NamedTuple):
    """One request at an instance, for policies that look at them one by one."""

    age_s: float
    """Time since its prefill instance got it."""
    prompt_tokens: int
    """Prefill: those not yet computed."""
    produced_tokens: int
    """Output tokens so far."""
    expected_tokens: float
    """Output tokens in all, as a length predictor of stated error tells."""


class LoadSnapshot(NamedTuple):
    """One instance at an iteration boundary, as its telemetry shows it.

    `batch_size` is 0 when the instance idles: then the controller is asked because it wished to be
    (`Decision.ask_when_idle_s`), not because there is work.
    """

    time_s: float
    clock_mhz: int
    """The clock last commanded."""
    batch_size: int
    """Requests in the iteration about to run."""
    batch_tokens: int
    """Prefill: prompt tokens the iteration computes. Decode: KV tokens held by the batch."""
    queued: int
    """Requests at this instance that are not in the batch."""
    queued_tokens: int
    """Prompt tokens of those."""
    longest_wait_s: float
    """Longest time since a request of the batch came to this instance (prefill; 0 in decode)."""
    idle_s: float
    """Time since the last iteration ended, infinite before the first; 0 at an iteration."""
    arrived_requests: int
    """Requests that ever reached this instance."""
    arrived_tokens: int
    """Prompt tokens that ever reached this instance."""
    iterations: int = 0
    """Iterations that ever ended here."""
    busy_s: float = 0.0
    """Time those took, all together. The mean latency between two snapshots is the growth of this by that of those."""
    power_w: float | None = None
    """Last published reading of the power sensor, all GPUs of the instance; only with `reads_power`."""
    cluster_power_w: float | None = None
    """Sum of the last readings of all instances; only with `reads_power`."""
    running: tuple[RequestView, ...] = ()
    """The requests of the batch; only with `reads_requests`."""
    waiting: tuple[RequestView, ...] = ()
    """The requests behind it, in order; only with `reads_requests`."""


class Decision(NamedTuple):
    """What a frequency controller answers."""

    clock_mhz: int
    ask_when_idle_s: float | None = None
    """Ask again when the instance has idled for so long; None: only at its next iteration."""
    holds_below_tokens: float = 0.0
    """The answer would be the same at every further iteration of this batch, while nothing but its tokens grows and
    they are below this. A promise that lets a simulator skip questions; 0: ask at every iteration."""
    power_cap_w: float | None = None
    """Power limit of every GPU of the instance; None: the GPU's own."""


class RequestInfo(NamedTuple):
    """A request as a router sees it."""

    request_id: int
    arrival_s: float
    prompt_tokens: int


class InstanceLoad(NamedTuple):
    """A candidate instance as a router sees it: last telemetry plus what the router has sent since."""

    clock_mhz: int
    requests: int
    """Running, queued, or on their way."""
    tokens: int
    """Prefill: prompt tokens not yet computed. Decode: KV tokens held or, if the router counts them, on their way."""


class PrefillPlan(NamedTuple):
    """What a prefill scheduler answers."""

    sends: Sequence[tuple[int, int]] = ()
    """Requests that go to an instance now, in this order: place in the queue, index of the instance. Others wait."""
    ask_at_s: float | None = None
    """Ask again at this time at the latest; None: when the next request comes or an instance ends an iteration."""


class PhaseLoad(NamedTuple):
    """The instances of one phase together, as a planner sees them."""

    instances: int
    """That there are."""
    ready: int
    """In service; the first so many."""
    requests: int
    """Running, queued, or on their way; prefill: also those that a scheduler holds back."""
    tokens: int
    """Of those, as in `InstanceLoad`."""


class ClusterLoad(NamedTuple):
    """A cluster as a planner sees it."""

    time_s: float
    arrived_requests: int
    """Since the start."""
    arrived_tokens: int
    """Prompt tokens of those."""
    prefill: PhaseLoad
    decode: PhaseLoad


class Placement(NamedTuple):
    """What a planner answers: how many instances of each phase are to be in service, from 1 to all.

    Those beyond get no new work, and sleep once they have none. One that is to serve again wakes first.
    """

    prefill: int
    decode: int


class Planner(Protocol):
    """Chooses, over minutes, how many instances are in service."""

    def plan(self, load: ClusterLoad) -> Placement:
        """Answer; asked every so many seconds."""
        ...


class FrequencyController(Protocol):
    """Chooses the SM clock of one instance (all GPUs of its TP group together).

    A controller may set class attributes that say what it looks at: `reads_load = False`, its first answer is its
    answer for ever; `reads_power = True`, the power sensor; `reads_requests = True`, requests one by one. What it does
    not ask for it is not given, because it costs time to gather. `acts_at_once = True` spares its clocks the delays of
    the driver in the simulator: for what the GPU does by itself. `voltana-check` tries what is said here.
    """

    def decide(self, load: LoadSnapshot) -> Decision:
        """Answer just before an iteration, or when the last answer asked to be asked again."""
        ...


class Router(Protocol):
    """Chooses the instance that takes a request.

    A router may set class attributes. `reads_load = False`: it looks at nothing but the number of candidates; what it
    is given then need not be up to date. `at_arrival = True`, for decode: it chooses when a request arrives, and until
    the request's KV cache has come, counts it as on its way (otherwise it is asked once prefill is done; a live router
    asks any at arrival). `counts_tokens_sent = False`: the tokens it sees are those of the telemetry alone.
    """

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Return the index of the chosen candidate."""
        ...


@runtime_checkable
class PrefillScheduler(Protocol):
    """Holds the requests of all prefill instances in one queue and binds each to an instance when it likes.

    It stands in the place of prefill's router. While requests wait it is asked when another one comes, when an
    instance ends an iteration (before that instance takes its next batch), and at the time that it named itself. A
    request that it sends joins the instance's own queue, from whose head the server forms batches. The frequency
    controllers of the prefill instances may ask for the same object (`scheduler`, see `voltana.policies.build`).
    """

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        """Say who goes where now, and when to ask again.

        Args:
            time_s: now.
            waiting: the queue, in order of arrival. Never empty.
            instances: the prefill instances. One without requests is idle.
        """
        ...
