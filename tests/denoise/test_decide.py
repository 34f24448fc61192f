"""Deciding what counts as noise. Every expected flag is worked out by hand beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llm4dsr.config import Config, DecideConfig
from llm4dsr.denoise.decide import (
    CONTROLLED,
    POLICIES,
    STAND_IN,
    VALIDATION,
    configured_rule,
    decide,
    effective_policy,
    ranks,
    rule,
)
from llm4dsr.errors import ConfigError

NAN = np.nan
# Three windows of 3, 4 and 2 interactions; their probabilities, and log-odds in the same order.
PROBABILITY = np.array([0.9, 0.2, 0.8, 0.1, 0.7, 0.3, 0.6, 0.5, 0.4])
OWNERS = np.repeat([0, 1, 2], [3, 4, 2])
LOG_ODDS = np.log(PROBABILITY / (1 - PROBABILITY))
MANY = 10  # a cap that is never reached


def flagged(policy: str, eta: float, cap: int = MANY) -> list[float]:
    """Probabilities of what is flagged, in falling order; they are unique here, so they say which ones."""
    return sorted(PROBABILITY[decide(OWNERS, LOG_ODDS, PROBABILITY, policy, eta, cap)].tolist(), reverse=True)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.75, [0.9, 0.8]),  # of 9 pooled scores, the quantile 0.75 is the 7th from below: 0.7, not above itself
        (0.5, [0.9, 0.8, 0.7, 0.6]),  # above the median 0.5
        (1.0, []),  # nothing is above the largest
        (0.0, [0.9, 0.8, 0.7, 0.6, 0.5, 0.3]),  # all but the smallest, and one of each window stays: 0.2, 0.1, 0.4
    ],
)
def test_percentile_is_of_all_pooled_scores(eta, expected):
    assert flagged("percentile", eta) == expected


@pytest.mark.parametrize(
    ("eta", "expected"),
    [(0.7, [0.9, 0.8, 0.7]), (0.71, [0.9, 0.8]), (1.0, []), (0.0, [0.9, 0.8, 0.7, 0.6, 0.5, 0.3])],
)
def test_probability_at_least_eta(eta, expected):
    assert flagged("probability", eta) == expected


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.95, []),  # even the first is below
        (0.85, [0.9, 0.8]),  # means: .9, .85, .8 (.9 + .8 + .7 over 3)
        (0.79, [0.9, 0.8, 0.7]),  # with 0.6 it would be 0.75
        (0.75, [0.9, 0.8, 0.7, 0.6]),
        (0.7, [0.9, 0.8, 0.7, 0.6, 0.5]),  # 3.5 / 5
        (0.0, [0.9, 0.8, 0.7, 0.6, 0.5, 0.3]),
    ],
)
def test_precision_is_the_mean_probability_of_the_flagged(eta, expected):
    assert flagged("precision", max(0.0, eta - 1e-9)) == expected  # the means above are exact, floats are not


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.0, []),
        (0.25, [0.9, 0.8]),  # 2.25 of 9
        (1 / 3, [0.9, 0.8, 0.7]),
        (0.5, [0.9, 0.8, 0.7, 0.6]),  # 4.5 is rounded to even
        (1.0, [0.9, 0.8, 0.7, 0.6, 0.5, 0.3]),  # one of each window stays
    ],
)
def test_rate_is_a_fraction_of_the_interactions(eta, expected):
    assert flagged("rate", eta) == expected


def test_rate_holds_under_the_cap_and_under_ties():
    """With one flag a window 0.9, 0.7 and 0.5 are left; a third of 9 takes all three, though 0.8 is above 0.7."""
    assert flagged("rate", 1 / 3, cap=1) == [0.9, 0.7, 0.5]
    assert flagged("rate", 0.5, cap=1) == [0.9, 0.7, 0.5]  # no more than the cap allows
    same = np.zeros(20)
    assert decide(np.repeat(np.arange(4), 5), same, same + 0.5, "rate", 0.25, 3).sum() == 5


# --- caps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["percentile", "probability", "precision"])
def test_the_cap_keeps_the_most_suspicious(policy):
    assert flagged(policy, 0.0, cap=1) == [0.9, 0.7, 0.5]
    assert flagged(policy, 0.0, cap=2) == [0.9, 0.8, 0.7, 0.6, 0.5]  # the third window has only one to spare
    assert flagged(policy, 0.0, cap=0) == []


def test_among_equals_the_oldest_is_flagged():
    log_odds, probability = np.array([0.0, 2.0, 2.0, 2.0]), np.array([0.5, 0.9, 0.9, 0.9])
    assert decide(np.zeros(4, int), log_odds, probability, "probability", 0.8, 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_window_of_one_interaction_is_never_emptied(policy):
    owners, log_odds = np.array([0, 1, 1]), np.array([9.0, 8.0, 7.0])
    out = decide(owners, log_odds, 1 / (1 + np.exp(-log_odds)), policy, 0.5 if policy == "percentile" else 0.9, MANY)
    assert not out[0]
    assert out[1:].sum() <= 1


@given(
    log_odds=arrays.arrays(float, (6, 5), elements=st.integers(-3, 3)),
    lengths=st.lists(st.integers(0, 5), min_size=6, max_size=6),
    policy=st.sampled_from(POLICIES),
    eta=st.floats(0, 1),
    cap=st.integers(0, 6),
)
def test_whatever_the_policy(log_odds, lengths, policy, eta, cap):
    """The cap holds, one stays, and no one is flagged while a more suspicious one is not."""
    owners, log_odds = np.repeat(np.arange(6), lengths), log_odds[np.arange(5) < np.array(lengths)[:, None]]
    out = decide(owners, log_odds, 1 / (1 + np.exp(-log_odds)), policy, eta, cap)
    for window, n in enumerate(lengths):
        row, flags = log_odds[owners == window], out[owners == window]
        assert flags.sum() <= max(0, min(cap, n - 1))
        assert not flags.any() or row[flags].min() >= max(row[~flags])


# --- absent values and errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_flagged_where_there_is_nothing(policy):
    alone = np.full(2, NAN)  # two windows of one interaction
    assert decide(np.arange(2), alone, alone, policy, 0.5, 3).tolist() == [False, False]
    assert decide(np.empty(0, int), np.empty(0), np.empty(0), policy, 0.5, 3).shape == (0,)


def test_an_unknown_policy_is_named():
    with pytest.raises(ConfigError, match=r"'quantile'; expected one of percentile, probability, precision, rate"):
        decide(OWNERS, LOG_ODDS, PROBABILITY, "quantile", 0.5, 3)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("eta", [-0.1, 1.1, NAN, np.inf])
def test_eta_is_between_0_and_1(policy, eta):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        decide(OWNERS, LOG_ODDS, PROBABILITY, policy, eta, 3)


# --- ranks --------------------------------------------------------------------------------------------------


def test_ranks_begin_with_the_most_suspicious_and_end_with_what_is_not_scored():
    owners, log_odds = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0.5, 3.0, -1.0, 2.0, NAN, 2.0, 5.0])
    assert ranks(owners, log_odds).tolist() == [2, 1, 3, 2, 4, 3, 1]


def test_training_and_test_histories_may_have_settings_of_their_own():
    published = Config.from_dict(
        {"decide": {"policy": "percentile", "eta": 0.6, "cap": 2, "eta_test": 0.9, "cap_test": 1}}
    ).decide
    assert configured_rule(published, is_train=True) == ("percentile", 0.6, 2)
    assert configured_rule(published, is_train=False) == ("percentile", 0.9, 1)
    assert configured_rule(Config().decide, is_train=False) == ("probability", 0.5, 3)
    shared = Config.from_dict({"decide": {"policy": "rate", "eta": 0.1}}).decide
    assert configured_rule(shared, True) == configured_rule(shared, False) == ("rate", 0.1, 3)
    none = Config.from_dict({"decide": {"policy": "rate", "eta": 0.1, "eta_test": 0, "cap_test": 0}}).decide
    assert configured_rule(none, is_train=False) == ("rate", 0.0, 0)  # 0 is a setting, not the lack of one


def test_probability_replaces_validation_without_a_recommender():
    assert Config().decide.policy == VALIDATION
    assert effective_policy(None, 0.3, VALIDATION) == configured_rule(Config().decide, is_train=True)[0] == STAND_IN
    assert STAND_IN in POLICIES
    assert effective_policy(None, None, VALIDATION) == VALIDATION
    assert effective_policy(None, 0.3, "rate") == "rate"


def test_arguments_override_the_configuration():
    """Without a recommender, the default policy `validation` is read as `probability`."""
    config = DecideConfig()
    assert rule(config, None, None, None, is_train=True) == ("probability", 0.5, 3)
    assert rule(config, "rate", 0.1, 1, is_train=False) == ("rate", 0.1, 1)
    assert rule(config, None, 0.8, None, is_train=True) == ("probability", 0.8, 3)


@pytest.mark.parametrize("policy", CONTROLLED)
def test_guarantees_are_only_for_runs(policy):
    with pytest.raises(ConfigError, match=f"'{policy}' needs more than a table of scores, so it is only for runs"):
        rule(DecideConfig(), policy, 0.1, None, is_train=True)


def test_a_policy_does_not_take_the_eta_of_another():
    """η = 0.5 is a probability; as a rate it would flag half of everything."""
    for configured, policy in (("validation", "rate"), ("probability", "percentile"), ("rate", "probability")):
        config = Config.from_dict({"decide": {"policy": configured}}).decide
        with pytest.raises(ConfigError, match=f"'{policy}' needs an η; the configured one is for"):
            rule(config, policy, None, None, is_train=True)
        with pytest.raises(ConfigError, match=f"'{policy}' needs an η"):
            effective_policy(policy, None, configured)
        assert rule(config, policy, 0.2, None, is_train=True)[:2] == (policy, 0.2)
    same = Config.from_dict({"decide": {"policy": "rate", "eta": 0.1}}).decide
    assert rule(same, "rate", None, None, is_train=True)[:2] == ("rate", 0.1)
    assert effective_policy("validation", None, "rate") == "validation"  # it chooses η itself
