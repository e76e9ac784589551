"""GPU physics: how long an iteration takes at a clock and what it draws. Stands alone."""

from sim.plant.engine import EngineSpec
from sim.plant.gpu import GpuSpec
from sim.plant.model import ModelSpec
from sim.plant.plant import DecodeLine, Plant, Step

__all__ = ["DecodeLine", "EngineSpec", "GpuSpec", "ModelSpec", "Plant", "Step"]
