"""Where the predictor of a run comes from: a file, or a profile taken and fitted once and kept.

What is kept lies in the user's cache folder under the hash of everything it depends on: the configuration of plant
and profile, and the code that profiles, fits and computes physics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from voltana.app.config import PlantConfig
from voltana.errors import UserError
from voltana.files import cache_folder
from voltana.prediction import fit, profile
from voltana.prediction.ecopred import EcoPred

AUTO = "auto"


class Measured(NamedTuple):
    """What a predictor can be fitted to."""

    samples: Callable[[], Sequence[profile.Sample]]
    """Takes the profile, now."""
    code: Sequence[Path]
    """The source files that it depends on."""


def load_predictor(source: str, config: PlantConfig, measured: Measured) -> EcoPred:
    """The predictor of a run.

    Args:
        source: `auto`, or the path of a file written by voltana-fit.
        config: what is profiled, and how.
        measured: takes that profile.

    Raises:
        UserError: the file is not such a file, or the profile cannot be taken.
    """
    path = predictor_file(source, config, measured)
    if source != AUTO:
        return EcoPred.load(path)
    try:
        return EcoPred.load(path)
    except UserError:  # not there yet, or damaged
        fitted = fit.fit_ecopred(measured.samples(), about_plant(config), config.profile.seed)
    try:
        fitted.save(path)
    except UserError as error:
        raise UserError(f"predictor: found auto, but {error}; allowed: another XDG_CACHE_HOME, or a path") from error
    return EcoPred.load(path)


def predictor_file(source: str, config: PlantConfig, measured: Measured) -> Path:
    """Where the predictor of a run lies, or will."""
    return Path(source) if source != AUTO else cache_folder() / f"ecopred-{_content_hash(config, measured.code)}.json"


def about_plant(config: PlantConfig) -> dict[str, Any]:
    """What a predictor file says of its origin."""
    return {"source": config.profile.source, "model": config.model.get("name"), "gpu": config.gpu.get("name")}


def _content_hash(config: PlantConfig, code: Sequence[Path]) -> str:
    settings = [config.gpu, config.model, config.serving.engine, config.profile.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in (*sorted(code), *(Path(__file__).with_name(name) for name in ("ecopred.py", "fit.py", "profile.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
