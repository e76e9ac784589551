"""Optional parts: what a command needs beyond the base installation."""

from __future__ import annotations

from importlib.util import find_spec

from voltana.errors import UserError

MODULES = {
    "catalogue": ("aiconfigurator_core",),
    "live": ("httptools", "msgspec", "pynvml", "uvloop", "zmq"),
    "profile": ("torch",),
    "tune": ("optuna",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""What each extra of pyproject.toml brings."""


def require(who: str, extra: str) -> None:
    """Look whether an extra is installed.

    Args:
        who: needs it.
        extra: a key of `MODULES`.

    Raises:
        UserError: it is not.
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f"{who} needs {', '.join(missing)}, allowed: after pip install 'voltana[{extra}]'")
