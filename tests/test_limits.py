"""What one visitor may ask, with a clock that is set by hand."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from dalle_mini.serving.refusals import LimitError
from dalle_mini.web.limits import Limits, visitor_at


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ask(limits: Limits, visitor: str) -> None:
    with limits.admit(visitor):
        pass


def test_without_limits_everything_is_admitted():
    limits = Limits()
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(limits.admit("ann"))


def test_one_request_more_at_once_is_refused_and_says_the_rule():
    limits = Limits(per_visitor=2)
    with limits.admit("ann"), limits.admit("ann"):
        with pytest.raises(LimitError, match=r"at most 2 requests at once.*try again when one of them has ended"):
            ask(limits, "ann")
        ask(limits, "bob")


def test_a_request_that_has_ended_or_failed_makes_room():
    limits = Limits(per_visitor=1)
    for _ in range(3):
        with pytest.raises(MemoryError), limits.admit("ann"):
            raise MemoryError
    ask(limits, "ann")


def test_the_next_request_is_taken_a_minute_after_the_first_and_the_refusal_says_when(clock: Clock):
    """Asked at 0, 10 and 20 s; at 25.4 s there are 34.6 left until 60."""
    limits = Limits(per_minute=3, clock=clock)
    for clock.seconds in (0, 10, 20):
        ask(limits, "ann")
    clock.seconds = 25.4
    with pytest.raises(LimitError, match=r"at most 3 times a minute.*try again in 35 s"):
        ask(limits, "ann")
    ask(limits, "bob")
    clock.seconds = 60
    ask(limits, "ann")
    clock.seconds = 60.6  # 9.4 left
    with pytest.raises(LimitError, match="try again in 10 s"):
        ask(limits, "ann")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("unknown", "unknown"),  # as a proxy may say
    ],
)
def test_a_visitor_has_one_address_of_ipv4_or_one_network_of_ipv6(address: str, name: str):
    assert visitor_at(address) == name


def test_refused_requests_do_not_count(clock: Clock):
    limits = Limits(per_visitor=1, per_minute=2, clock=clock)
    with limits.admit("ann"):
        for _ in range(5):
            with pytest.raises(LimitError, match="at once"):
                ask(limits, "ann")
    ask(limits, "ann")


def test_visitors_are_forgotten_when_nothing_is_known_of_them_any_more(clock: Clock):
    limits = Limits(per_visitor=1, per_minute=1, clock=clock)
    for number in range(100):
        ask(limits, f"visitor {number}")
    clock.seconds = 61
    ask(limits, "ann")
    assert (dict(limits._open), list(limits._begun)) == ({}, ["ann"])


def test_threads_never_exceed_a_limit():
    limits, refused = Limits(per_minute=50), []

    def visit(_: int) -> None:
        try:
            ask(limits, "ann")
        except LimitError as error:
            refused.append(error)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(visit, range(200)))
    assert len(refused) == 150


@pytest.mark.parametrize("name", ["per_visitor", "per_minute"])
def test_a_limit_below_one_is_named(name: str):
    with pytest.raises(ValueError, match=rf"^{name} must be >= 1, got 0$"):
        Limits(**{name: 0})
