"""Bad input ends in one line and status 2, a run gone wrong in 3, an interrupt in 130, a bug in its traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from omegaconf import DictConfig

from voltana.app.cli import hydra_command
from voltana.errors import RunError, RunsCrashedError, UserError

SIM = """
defaults:
  - policy: good
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
rps: 1
seed: 13
trace: {name: sharegpt, path: null}
hydra:
  output_subdir: null
  run: {dir: run}
  sweep: {dir: sweep}
"""


class Controller:
    """A policy part, as `instantiate` builds it."""

    def __init__(self, gain: int = 1, inner: object = None) -> None:
        if gain < 0:
            raise UserError(f"gain: found {gain}, allowed: 0 or more")
        if gain == 7:
            raise ValueError("our bug")


HERE = f"{__name__}.Controller"


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf"
    (folder / "policy").mkdir(parents=True)
    (folder / "sim.yaml").write_text(SIM)
    (folder / "policy" / "good.yaml").write_text(f"name: good\npart: {{_target_: {HERE}}}\n")
    (folder / "policy" / "other.yaml").write_text(f"name: other\npart: {{_target_: {HERE}, gain: 2}}\n")
    return folder


Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(conf: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def start(*words: str, job: Callable[[DictConfig], None] = lambda config: None) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["voltana-sim", *words])
        status: object = 0
        try:
            hydra_command("sim", job, program="voltana-sim", config_path=str(conf))()
        except SystemExit as stop:
            status = stop.code
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return start


def build(config: DictConfig) -> None:
    instantiate(config.policy)


def test_job_gets_the_configuration_with_overrides(run: Run) -> None:
    seen: list[tuple[int, str]] = []
    status, _, err = run("rps=5", "policy=other", job=lambda config: seen.append((config.rps, config.policy.name)))
    assert (status, err, seen) == (0, "", [(5, "other")])


@pytest.mark.slow
def test_sweep_runs_every_combination_in_its_own_folder(run: Run) -> None:
    seen: list[tuple[int, str]] = []
    job = lambda config: seen.append((config.rps, config.policy.name))  # noqa: E731
    status, _, err = run("-m", "rps=1,2", "policy=good,other", job=job)
    assert (status, err) == (0, "")
    assert seen == [(1, "good"), (1, "other"), (2, "good"), (2, "other")]
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["single", "multirun"])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rp=2"], "unknown config key 'rp'; allowed: policy, rps, seed, trace; did you mean rps?"),
        (["trace.pth=a"], "unknown config key 'trace.pth'; allowed: name, path; did you mean path?"),
        (["rps.foo=2"], "unknown config key 'rps.foo': 'rps' holds a value, not keys"),
        (["policy=othr"], "policy=othr: no such option; allowed: good, other; did you mean other?"),
        (["hydra.run.dri=x"], "unknown config key 'hydra.run.dri'; allowed: dir; did you mean dir?"),
        (["~foo"], "Could not delete from config. 'foo' does not exist."),
        (["--config-dir=/no/such"], "Additional config directory '/no/such' not found"),
        (["--config-name=nope"], "Cannot find primary config 'nope'. Check that it's in your config search path."),
        (["--nope"], "unrecognized arguments: --nope; see --help"),
        (["--cfg", "job", "--run"], "Only one of --run, --multirun, --cfg, --info and --shell_completion can be"),
        (["rps"], "cannot parse 'rps' (missing EQUAL at '<EOF>'); allowed: key=value, +key=value, ~key"),
        (["rps=[1,2"], "cannot parse 'rps=[1,2' ("),
    ],
)
def test_bad_command_line_is_one_line(run: Run, words: list[str], line: str, multirun: list[str]) -> None:
    status, _, err = run(*multirun, *words)
    assert status == 2
    assert err.startswith(f"voltana-sim: error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=???"], "missing value: seed; give it as seed=..."),
        (["rps=${nope}"], "rps: Interpolation key 'nope' not found"),
        (["+policy.part.gain=-1"], "policy.part: gain: found -1, allowed: 0 or more"),
        (["+policy.part.gian=1"], "policy.part: Controller.__init__() got an unexpected keyword argument 'gian'"),
        ([f"+policy.part.inner={{_target_: {HERE}, gain: -2}}"], "policy.part.inner: gain: found -2, allowed"),
        (["policy.part._target_=no.such.Thing"], "policy.part: Error locating target 'no.such.Thing'"),
    ],
)
def test_bad_value_met_by_the_job_is_one_line(run: Run, words: list[str], line: str) -> None:
    status, _, err = run(*words, job=build)
    assert status == 2
    assert err.startswith(f"voltana-sim: error: {line}")
    assert err.count("\n") == 1


def test_several_values_without_a_sweep(run: Run) -> None:
    _, _, err = run("rps=1,2")
    assert err == (
        "voltana-sim: error: rps: found several values, 1,2; sweep over them with -m, or give one list as rps=[1,2]\n"
    )


@pytest.mark.slow
def test_sweep_reports_its_refused_jobs_after_the_last(run: Run) -> None:
    finished: list[int] = []

    def job(config: DictConfig) -> None:
        if config.rps % 2 == 0:
            raise UserError(f"rps: found {config.rps},\n allowed: odd")
        finished.append(config.rps)

    status, _, err = run("-m", "rps=1,2,3", job=job)
    assert status == 2
    assert finished == [1, 3]
    first = "voltana-sim: error: {} of {} jobs refused, the first: job 1 (rps=2): rps: found 2, allowed: odd"
    assert err == first.format(1, 3) + "\n"
    status, _, err = run("-m", "rps=1,2,3,4", job=job)
    assert status == 2
    assert err.splitlines() == [
        "refused: job 1 (rps=2): rps: found 2, allowed: odd",
        "refused: job 3 (rps=4): rps: found 4, allowed: odd",
        first.format(2, 4),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("also_refused", "status"), [(False, 3), (True, 2)])
def test_a_run_that_went_wrong_has_a_status_of_its_own(run: Run, also_refused: bool, status: int) -> None:
    def job(config: DictConfig) -> None:
        if config.rps == 1:
            raise RunError("a server died, decode-1: it ended by signal 9")
        if also_refused:
            raise UserError("rps: found 2, allowed: odd")

    line = "a server died, decode-1: it ended by signal 9\n"
    assert run("rps=1", job=job) == (3, "", f"voltana-sim: error: {line}")
    found, _, err = run("-m", "rps=1,2", job=job)
    assert found == status
    assert err.endswith(f"the first: job 0 (rps=1): {line}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (UserError("rps: found 2,\n allowed: odd"), 2),
        (RunsCrashedError("rps: found 2,\n allowed: odd"), 1),
        (ValueError("our bug"), None),
    ],
)
def test_error_of_a_launcher(run: Run, monkeypatch: pytest.MonkeyPatch, raised: Exception, status: int | None) -> None:
    class Failing:
        def launch(self, *_: object, **__: object) -> None:
            raise raised

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Failing())
    if status is None:
        with pytest.raises(ValueError, match="our bug"):
            run("-m", "rps=1,2")
    else:
        assert run("-m", "rps=1,2") == (status, "", "voltana-sim: error: rps: found 2, allowed: odd\n")


def test_run_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    status, _, err = run("hydra.run.dir=taken")
    assert (status, err) == (2, "voltana-sim: error: taken: File exists\n")


def test_a_full_disk_names_the_folder_of_the_sweep(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").symlink_to("/dev/full")
    status, _, err = run("-m", "rps=1,2", "hydra.sweep.dir=sweep")
    assert (status, err) == (
        2,
        "voltana-sim: error: hydra.sweep.dir: multirun.yaml: No space left on device\n",
    )


def test_broken_yaml_names_the_file(run: Run, conf: Path) -> None:
    (conf / "policy" / "broken.yaml").write_text("a: [1\n")
    status, _, err = run("policy=broken")
    assert status == 2
    assert "broken.yaml" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("-m", "rps=1,2")], ids=["single", "multirun"])
def test_interrupt(run: Run, words: tuple[str, ...]) -> None:
    def job(config: DictConfig) -> None:
        raise KeyboardInterrupt

    assert run(*words, job=job) == (130, "", "voltana-sim: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("-m", "rps=1,2")], ids=["single", "multirun"])
@pytest.mark.parametrize("bug", [ValueError, OSError, KeyError])
def test_a_bug_is_raised_as_it_is(run: Run, bug: type[Exception], words: tuple[str, ...]) -> None:
    def job(config: DictConfig) -> None:
        raise bug("ours")

    with pytest.raises(bug, match="ours"):
        run(*words, job=job)


def test_a_bug_inside_instantiate_is_raised(run: Run) -> None:
    with pytest.raises(Exception, match="our bug"):
        run("+policy.part.gain=7", job=build)


def test_full_error_keeps_the_traceback_of_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override"):
        run("rp=2")


def test_hydra_flags_work(run: Run) -> None:
    status, out, _ = run("--hydra-help")
    assert status == 0 and "--multirun" in out
    status, out, _ = run("--cfg", "job", "rps=9")
    assert status == 0
    assert "rps: 9" in out


def test_import_is_light() -> None:
    heavy = {"hydra", "omegaconf", "pandas", "matplotlib", "scipy", "numpy"}
    code = f"import sys, voltana.app.cli; print({heavy!r} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
