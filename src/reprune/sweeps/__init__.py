"""Many runs: the cells of a sweep, workers side by side, status, campaigns and the bundles they travel in.

Imports everything below. Here are the names that configs give as `_target_`.
"""

from reprune.sweeps.cells import Summary
from reprune.sweeps.workers import Workers, leave_with_parent

__all__ = ["Summary", "Workers", "leave_with_parent"]
