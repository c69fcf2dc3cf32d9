"""Random nets hold the central property: 30 here, `python tests/graphs.py 500` for more."""

from graphs import holds, steps
from hypothesis import HealthCheck, given, settings


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps)
def test_random_nets(tmp_path, steps):
    holds(steps, tmp_path)
