"""Who may talk to the owner: a socket with file permissions, and the kernel's word on who is at the other end."""

from __future__ import annotations

import grp
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from voltana.errors import UserError

PROGRAM = "voltana-clocks"
"""The owner, as a command."""
SOCKET_NAME = "clocks.sock"
ROOT_FOLDER = Path("/run/voltana")
_PEER_GROUPS = 59
"""SO_PEERGROUPS of <asm-generic/socket.h>, which Python does not name: the peer's supplementary groups."""
_LONGEST_PATH = 107
"""Bytes of a Unix-domain socket address."""


def standard_folder() -> Path:
    """Where an owner keeps its socket, lock and note of changes: one per host for root, else one per user."""
    if os.geteuid() == 0:
        return ROOT_FOLDER
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "voltana" if runtime else platformdirs.user_cache_path("voltana") / "owner"


def standard_socket() -> Path:
    """Where a client looks: the privileged owner's socket."""
    return ROOT_FOLDER / SOCKET_NAME


def prepare_folder(folder: Path) -> Path:
    """Make the owner's folder if need be.

    Raises:
        UserError: it cannot be made, or somebody else could replace what is in it.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = folder.resolve()
        statuses = [(path, path.stat()) for path in (folder, *folder.parents)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); allowed: --folder with write access") from error
    for path, status in statuses:
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = path != folder and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()) or (others_write and not sticky):
            raise UserError(
                f"{path}: found owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}; "
                "allowed: a folder in which nobody else may replace files"
            )
    return folder


def group_id(name: str) -> int:
    """The number of a group given by name or number.

    Raises:
        UserError: no such group.
    """
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserError(f"--group: found {name!r}; allowed: a group of this host (groupadd {name})") from None


def listen(path: Path, gid: int | None) -> socket.socket:
    """Bind the socket, mode 0660, for the owner's user and a group; the folder's lock must be held.

    Raises:
        UserError: the path is too long, or the group may not be given.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UserError(f"{path}: found {len(os.fsencode(path))} bytes; allowed: a path of at most {_LONGEST_PATH}")
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    closed_to_others = os.umask(0o177)
    try:
        server.bind(os.fspath(draft))
        if gid is not None:
            os.chown(draft, -1, gid)
        draft.chmod(0o660)
        server.listen(64)
        draft.replace(path)  # so that whoever sees it can connect
    except OSError as error:
        server.close()
        raise UserError(f"{path}: cannot be made ({error.strerror}); allowed: a group that you belong to") from error
    finally:
        os.umask(closed_to_others)
    server.setblocking(False)
    return server


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a socket, as the kernel tells it."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Who connected."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        others = connection.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, 1024)
    except OSError:  # more than 256 groups, or a kernel before 4.13: the main group alone
        others = b""
    return Peer(pid, uid, frozenset({gid, *(number for (number,) in struct.iter_unpack("I", others))}))


def allowed(peer: Peer, gid: int | None) -> bool:
    """Root, the owner's user, and members of the group."""
    return peer.uid in (0, os.geteuid()) or (gid is not None and gid in peer.gids)
