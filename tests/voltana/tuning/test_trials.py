"""Which trials no other beats, which are given up, and which becomes the preset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.tuning.trials import Trial, beaten_so_far, beats, bounds, change_pct, chosen, front

OBJECTIVE = ("energy_j.total", "joint_attainment")
seeds = st.lists(st.tuples(st.integers(1, 5).map(float), st.integers(0, 4).map(float)), min_size=2, max_size=2)
some = st.lists(seeds, min_size=1, max_size=8).map(
    lambda each: [Trial(str(place), {"a": place}, tuple(values)) for place, values in enumerate(each)]
)


@given(some)
def test_a_front_has_what_none_beats_and_every_other_is_beaten_by_it(trials: list[Trial]) -> None:
    best = front(trials, OBJECTIVE)
    assert best
    assert not any(beats(one.mean, other.mean, OBJECTIVE) for one in best for other in best)
    assert all(trial in best or any(beats(one.mean, trial.mean, OBJECTIVE) for one in best) for trial in trials)
    assert [trial.mean[0] for trial in best] == sorted(trial.mean[0] for trial in best)


@given(some)
def test_what_is_beaten_with_every_seed_is_on_no_front(trials: list[Trial]) -> None:
    for trial in trials:
        better = beaten_so_far(trial.seeds, trials, OBJECTIVE)
        assert better is not trial
        assert better is None or trial not in front(trials, OBJECTIVE)


def test_a_trial_is_compared_by_the_seeds_it_has() -> None:
    finished = Trial("f", {}, ((2.0, 0.9), (9.0, 0.1)))
    assert beaten_so_far([(3.0, 0.9)], [finished], OBJECTIVE) is finished
    assert beaten_so_far([(2.0, 0.9)], [finished], OBJECTIVE) is None
    assert beaten_so_far([(3.0, 0.9), (3.0, 0.9)], [finished], OBJECTIVE) is None


def test_the_preset_saves_most_of_those_that_keep_what_the_policy_kept() -> None:
    as_it_is = Trial("as_it_is", {}, ((10.0, 0.95), (12.0, 0.97), (11.0, 0.96)))
    cheap, right, dear = (
        Trial(label, {"a": 1.0}, ((energy, met),) * 3)
        for label, energy, met in (("cheap", 5.0, 0.5), ("right", 8.0, 0.96), ("dear", 20.0, 1.0))
    )
    given_up = Trial("given_up", {"a": 2.0}, ((1.0, 1.0),), "beaten by right")
    best = front([dear, right, cheap, given_up], OBJECTIVE)
    assert [trial.label for trial in best] == ["cheap", "right", "dear"]
    kept = bounds(None, as_it_is, OBJECTIVE)
    assert kept == {"joint_attainment": pytest.approx(0.96)}
    assert chosen(best, kept, OBJECTIVE) is right
    assert chosen(best, {"joint_attainment": 0.4}, OBJECTIVE) is cheap
    assert chosen(best, {"energy_j.total": 4.0}, OBJECTIVE) is None
    change, half = change_pct(right, as_it_is, 0)
    assert change == pytest.approx(100 * (8 / 10 + 8 / 12 + 8 / 11) / 3 - 100) and half is not None and half > 0
    assert change_pct(as_it_is, as_it_is, 0) == (0.0, 0.0)


@pytest.mark.parametrize("keep", [3, {"other": 1.0}, {"joint_attainment": "all"}, {"joint_attainment": True}])
def test_bounds_are_numbers_by_objective(keep: object) -> None:
    with pytest.raises(UserError, match=r"allowed: numbers by objective, which are energy_j.total, joint_attainment"):
        bounds(keep, Trial("as_it_is", {}, ((1.0, 1.0),)), OBJECTIVE)
