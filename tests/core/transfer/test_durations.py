"""Seconds are forecast from what is trained: examples passed, parameters, tokens."""

import pytest

from core.transfer.durations import BESIDE, Durations
from core.transfer.experience import Experience
from core.transfer.strategies import StrategyConfig

CONFIG = StrategyConfig(examples=480, min_epochs=2)


def ran(n, strategy="full", tokens=10.0, trains=True, passes=None, rate=1e-9):
    passes = (CONFIG.epochs(n) * n if trains else 0) if passes is None else passes
    seconds = rate * 1e7 * passes * (tokens + BESIDE) if trains else 0.2
    return Experience(situation(tokens), strategy, 0.7, seconds, "t", f"c{n}", passes=passes)


def situation(tokens=10.0):
    return {"log_examples": 1.2, "log_parameters": 7.0, "tokens": tokens}


def test_a_history_of_few_examples_forecasts_many_rightly():
    """Sixteen examples are passed fifteen times, a thousand twice: eight times the work, not sixty-two."""
    few, many = ran(16), ran(1000)
    forecast = Durations([few]).of("full", situation(), many.passes)
    assert forecast == pytest.approx(many.seconds)
    assert forecast / few.seconds == pytest.approx(2000 / 240)


def test_longer_texts_take_longer():
    told = Durations([ran(100, tokens=10.0)])
    short, long = (told.of("full", situation(t), 500) for t in (10.0, 200.0))
    assert long / short == pytest.approx((200 + BESIDE) / (10 + BESIDE))
    words = {"log_parameters": 7.0, "mean_words": 150.0}
    assert told.of("full", words, 500) == pytest.approx(long), "words where tokens were not counted"


def test_what_trains_nothing_takes_as_long_as_it_took():
    assert Durations([ran(16, "share", trains=False)]).of("share", situation(), 5000) == 0.2


def test_nothing_is_forecast_where_passes_are_not_on_record():
    old = Experience(situation(), "full", 0.7, 9.0, "t", "c")
    assert Durations([old]).of("full", situation(), 100) is None
