"""What a followed training says of the edge of stability."""

import math

import pytest

from tunewright.search.judge.edge_ratio import SETTLED, EdgeRatio, EdgeRun, ratio_sentences


def run(ratios, optimizer="momentum", base_lr=0.1, outcome="feasible"):
    """Looks after 1, 10, 100, … updates."""
    looks = [EdgeRatio(10**i, base_lr, 5.0, ratio) for i, ratio in enumerate(ratios)]
    return EdgeRun(base_lr, optimizer, outcome, tuple(looks))


def test_the_highest_ratio_is_told_and_predicts_the_edge():
    found = run([0.1, 0.97, 0.4])
    assert found.words == "is at 0.97 of the edge at step 10"
    assert found.predicted_edge == pytest.approx(0.1 / 0.97)


def test_far_beyond_the_edge_no_number_is_told():
    assert run([0.1, 12.0, 3e11]).words == "is beyond 10 times the edge at step 10"


def test_a_second_moment_of_few_gradients_does_not_count():
    assert run([900.0, 0.2, 0.4], "adam").highest.step == 100
    assert run([900.0, 0.2, 0.4]).highest.step == 1
    assert all(look.step >= SETTLED for look in run([900.0, 0.2, 0.4], "adamw").settled)


def test_what_was_not_seen_predicts_nothing():
    assert math.isnan(run([]).predicted_edge)
    assert math.isnan(run([3.0], "adam").predicted_edge)
    assert run([]).words == "was not seen: it broke or ended too early"
    assert run([0.0, 0.0]).predicted_edge == math.inf


def test_sentences_of_a_stable_an_edge_and_a_diverging_run():
    runs = [
        run([0.1, 0.2]),
        run([0.5, 0.9], base_lr=0.4),
        run([4.0], base_lr=0.8, outcome="diverged"),
    ]
    first, others, predicted, noise = ratio_sentences(runs, 0.6)
    assert first == "Plain training at base_lr 0.1 is at 0.2 of the edge at step 10."
    assert "at 0.4 (feasible) it is at 0.9 of the edge at step 10" in others
    assert "at 0.8 (diverged) it is at 4 of the edge at step 1" in others
    assert "the edge would be at 0.5 (such predictions are off by" in predicted
    assert predicted.endswith("; trainings break at 0.6.")
    assert "noise of minibatches" in noise


def test_a_run_beyond_the_edge_is_not_called_near_and_far_beyond_predicts_nothing():
    passed = ratio_sentences([run([1.4])], 0.6)
    assert passed[1].startswith("That is beyond the edge for a while")
    assert any("would be" in one for one in passed)
    assert not any("would be" in one for one in ratio_sentences([run([1e6])], 0.6))


def test_every_sentence_has_its_verb():
    runs = [run([], "adam"), run([0.3] * 3, "adam", base_lr=0.4), run([], "adam", base_lr=0.8)]
    first, others, _ = ratio_sentences(runs, 0.6)
    assert first == "Plain training at base_lr 0.1 was not seen: it broke or ended too early."
    assert "at 0.4 (feasible) it is at 0.3 of the edge" in others
    assert others.endswith("at 0.8 (feasible) it was not seen: it broke or ended too early.")


def test_of_an_adaptive_rule_no_edge_is_predicted_in_a_sentence():
    assert not any("would be" in one for one in ratio_sentences([run([5, 0.1], "adam")], 0.6))


def test_being_near_the_edge_is_told_as_such_and_nothing_without_runs():
    assert ratio_sentences([], math.inf) == []
    assert not any("near the edge" in one for one in ratio_sentences([run([0.4])], math.inf))
    told = ratio_sentences([run([0.97])], math.inf)
    assert told[1].startswith("That is near the edge")
    assert any("none was found" in one for one in told)
