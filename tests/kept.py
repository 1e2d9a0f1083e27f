"""Places outside a workload's own attributes in which Python code keeps state: a module that a
workload imports.
"""

import functools
import os

CALLS = 0


def in_a_global():
    global CALLS
    CALLS += 1


def in_an_attribute():
    in_an_attribute.calls = getattr(in_an_attribute, "calls", 0) + 1


def in_a_default(seen=[]):  # noqa: B006
    seen.append(1)


def _counter():
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    return count


in_a_closure = _counter()


class Counter:
    calls = 0

    class Nested:
        calls = 0

    def __call__(self, seen=[]):  # noqa: B006
        self.calls += 1

    def in_a_default_of_a_method(self, seen=[]):  # noqa: B006
        seen.append(1)


in_an_object_that_is_called = Counter()
in_a_default_of_a_method = Counter().in_a_default_of_a_method
in_a_partial = functools.partial(Counter())


def in_a_nested_class():
    Counter.Nested.calls += 1


@functools.cache
def _cached(x):
    return 2 * x


def in_no_place():
    _cached(os.getpid())
    return list(range(3))


def in_the_environment():
    os.environ["CALLS"] = os.environ.get("CALLS", "") + "1"


PLACES = (
    in_a_global,
    in_an_attribute,
    in_a_default,
    in_a_closure,
    in_an_object_that_is_called,
    in_a_default_of_a_method,
    in_a_partial,
    in_a_nested_class,
    in_the_environment,
)
