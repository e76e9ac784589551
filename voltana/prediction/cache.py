"""Where the predictor of a run comes from: a file, or a profile of the plant fitted once and kept.

What is kept lies in the user's cache folder under the hash of everything it depends on: the configuration of plant
and profile, and the code that profiles, fits and computes physics.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import voltana
from voltana.app.config import PlantConfig
from voltana.errors import UserError
from voltana.prediction.ecopred import EcoPred
from voltana.sim.plant.plant import Plant

AUTO = "auto"


def load_predictor(source: str, config: PlantConfig, plant: Plant) -> EcoPred:
    """The predictor for a plant.

    Args:
        source: `auto`, or the path of a file written by voltana-fit.

    Raises:
        UserError: the file is not such a file, or the profile cannot be taken.
    """
    path = predictor_file(source, config)
    if source != AUTO:
        return EcoPred.load(path)
    try:
        return EcoPred.load(path)
    except UserError:  # not there yet, or damaged
        fitted = profile_and_fit(config, plant)
    try:
        fitted.save(path)
    except UserError as error:
        raise UserError(f"predictor: found auto, but {error}; allowed: another XDG_CACHE_HOME, or a path") from error
    return EcoPred.load(path)


def predictor_file(source: str, config: PlantConfig) -> Path:
    """Where the predictor of a run lies, or will."""
    return Path(source) if source != AUTO else cache_folder() / f"ecopred-{_content_hash(config)}.json"


def profile_and_fit(config: PlantConfig, plant: Plant) -> EcoPred:
    """Profile the plant and fit, now."""
    from voltana.prediction.fit import fit_ecopred
    from voltana.sim.run.profiling import profile_plant

    samples = profile_plant(plant, config.profile)
    return fit_ecopred(samples, about_plant(config), config.profile.seed)


def about_plant(config: PlantConfig) -> dict[str, Any]:
    """What a predictor file says of its origin."""
    return {"source": config.profile.source, "model": config.model.get("name"), "gpu": config.gpu.get("name")}


def cache_folder() -> Path:
    """The user's cache folder of this project."""
    from platformdirs import user_cache_path

    return user_cache_path("voltana")


def _content_hash(config: PlantConfig) -> str:
    profile = config.profile.model_dump(mode="json")
    text = json.dumps([config.gpu, config.model, config.serving.engine, profile], sort_keys=True) + _code_hash()
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def _code_hash() -> str:
    here, library = Path(__file__).parent, Path(voltana.__file__).parent
    sources = sorted(here.glob("*.py"))
    sources += [library / name for name in ("fitting.py", "ecopred.py", "profile.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
