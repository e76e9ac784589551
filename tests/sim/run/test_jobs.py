"""Jobs of a sweep are what Hydra makes of them, however few it is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from voltana.sim.run.compose import run_values
from voltana.sim.run.jobs import JobComposer

CHOICES = [
    ("policy=voltana", "rps=50", "seed=1"),
    ("policy=voltana", "rps=60", "seed=2"),
    ("seed=2", "rps=60", "policy=voltana"),
    ("policy=static_max", "policy.decode_controller.clock_mhz=900", "model=qwen3_32b"),
    ("experiment=paper_main", "model=ministral_3b", "trace=lmsys", "experiment.point=3"),
    ("experiment=paper_main", "model=ministral_3b", "trace=lmsys", "experiment.point=5"),
    ("cluster.prefill_instances=4", "slo=tight", "slo.itl_ms=30"),
    ("router@policy.decode_router=random",),
    ("gpu.bandwidth_curve=[[510,0.5],[1110,1.0]]",),
]
UNUSUAL = [
    ("policy=static_max", "+policy.note=a"),
    ("trace.note=a", "+trace.note=b"),
    ("+scheduler@policy.prefill_router=queue", "rps=3"),
    ("cluster.link={latency_s:0.1}",),
    ("~bound",),
    ("rps=${seed}", "seed=40"),
    ("overwrite=true",),
]
WRONG = [("rsp=3",), ("policy=mine",), ("policy.nothing=3",), ("bound.x=3",)]


@pytest.fixture(autouse=True, name="loader")
def _loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfigLoaderImpl]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import hydra_plugins.voltana  # noqa: F401 - makes its launcher known to the configuration

    with initialize_config_module("voltana.conf", version_base="1.3", job_name="test"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        yield loader


def master(loader: ConfigLoaderImpl, *words: str) -> DictConfig:
    return loader.load_configuration("sim", list(words), run_mode=RunMode.MULTIRUN)


def by_hydra(loader: ConfigLoaderImpl, overrides: tuple[str, ...]) -> dict[str, Any] | str:
    try:
        return run_values(loader.load_configuration("sim", list(overrides), run_mode=RunMode.RUN), overrides)
    except HydraException as error:
        return str(error)


def test_jobs_are_those_of_hydra(loader: ConfigLoaderImpl) -> None:
    sweep = master(loader, "hydra.sweep.dir=here")
    expected = {overrides: by_hydra(loader, overrides) for overrides in (*CHOICES, *UNUSUAL, *WRONG)}
    composer = JobComposer(loader, sweep)
    for number, overrides in enumerate(expected):
        try:
            found: dict[str, Any] | str = composer.job(overrides).values
            assert composer.folder(overrides, number) == Path("here") / str(number)
        except HydraException as error:
            found = str(error)
        assert found == expected[overrides], overrides


def test_hydra_composes_once_for_jobs_with_the_same_choices(
    loader: ConfigLoaderImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, asked = master(loader), []
    compose = loader.load_sweep_config

    def counted(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        asked.append(sweep_overrides)
        return compose(master_config, sweep_overrides)

    monkeypatch.setattr(loader, "load_sweep_config", counted)
    jobs = [(policy, f"rps={rps}") for policy in ("policy=voltana", "policy=static_max") for rps in range(5)]
    for again in range(2):
        composer = JobComposer(loader, sweep)
        assert [composer.job(job).values["rps"] for job in jobs] == [0, 1, 2, 3, 4] * 2
        composer.save()
        assert len(asked) == 2, again


def test_a_job_goes_where_the_configuration_says(loader: ConfigLoaderImpl) -> None:
    sweep = master(loader, "hydra.sweep.dir=here", "hydra.sweep.subdir=${hydra.job.num}-${hydra.job.override_dirname}")
    composer = JobComposer(loader, sweep)
    assert composer.folder(("rps=3", "seed=4"), 7) == Path("here/7-rps=3,seed=4")
    assert composer.folder(("rps=4", "seed=4"), 8) == Path("here/8-rps=4,seed=4")


def test_what_depends_on_more_than_the_configuration_is_not_kept(
    loader: ConfigLoaderImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("duration_s=${oc.env:SECONDS_OF_TEST}",)
    for seconds in ("3", "4"):
        monkeypatch.setenv("SECONDS_OF_TEST", seconds)
        composer = JobComposer(loader, master(loader))
        assert composer.job(words).values["duration_s"] == seconds
        composer.save()
