"""One process at a time changes a GPU, whatever user runs it and wherever it keeps its files.

A GPU is held by a Unix-domain socket whose name, in the kernel's own namespace, is the GPU's UUID. Any user can take
such a name, only one at a time; it has no file that could be replaced, made by somebody else or left behind, and it is
free again as soon as the process ends, however it does. Who holds it is the kernel's word on the other end. The names
are those of a network namespace: a container with one of its own does not see those of its host.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from voltana.errors import UserError
from voltana.live.clocks.access import peer_of

_LONGEST = 64
"""Bytes of a UUID that go into a name as they are."""


class GpuHolds:
    """The GPUs that this process alone may change, until it ends or lets go of them."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket] = {}

    def take(self, gpu: int, uuid: str) -> None:
        """Hold a GPU; nothing happens if it is held already.

        Args:
            gpu: its index, for messages.
            uuid: as NVML tells it.

        Raises:
            UserError: another process holds it.
        """
        if uuid in self._held:
            return
        name = _name(uuid)
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            held.bind(name)
            held.listen()  # so that others can learn who it is
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"GPU {gpu}: cannot be held ({error.strerror})") from error
            raise UserError(f"GPU {gpu}: another owner has it ({_holder(name)}); stop it first") from None
        self._held[uuid] = held

    def release(self, uuid: str) -> None:
        """Let others have a GPU."""
        self._held.pop(uuid).close()

    @contextmanager
    def borrowed(self, gpu: int, uuid: str) -> Iterator[None]:
        """Hold a GPU for the time of a `with` statement, or longer if it is held anyway; errors as `take`."""
        before = uuid in self._held
        self.take(gpu, uuid)
        try:
            yield
        finally:
            if not before:
                self.release(uuid)


def holder(uuid: str) -> str | None:
    """Who holds a GPU, in words; None: nobody."""
    try:
        GpuHolds().take(0, uuid)
    except UserError:
        return _holder(_name(uuid))
    return None


def _name(uuid: str) -> bytes:
    name = uuid.encode()
    return b"\0voltana/gpu/" + (name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest().encode())


def _holder(name: bytes) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(name)
            peer = peer_of(caller)
        except OSError:  # it has just ended, or too many have asked
            return "process unknown"
    return f"process {peer.pid} of user {peer.uid}"
