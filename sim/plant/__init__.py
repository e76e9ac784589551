"""GPU physics: how long an iteration takes at a clock and what it draws. Stands alone."""

from voltana.sim.plant.engine import EngineSpec
from voltana.sim.plant.gpu import GpuSpec
from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.plant import DecodeLine, Plant, Step

__all__ = ["DecodeLine", "EngineSpec", "GpuSpec", "ModelSpec", "Plant", "Step"]
