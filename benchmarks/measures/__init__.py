"""What is measured, each on one started server; a measurement gives figures by name.

For names in `MORE_IS_BETTER` a ratio above 1 is good, else below 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.measures import resting, streams
from benchmarks.measures.common import FULL, QUICK, Figures, Measure, Sizes
from benchmarks.measures.resting import help_imports

__all__ = ["FULL", "MEASURES", "MORE_IS_BETTER", "QUICK", "Figures", "Sizes", "help_imports"]

# In the order in which they run on a server that has just been started.
MEASURES: Mapping[str, Measure] = {**resting.MEASURES, **streams.MEASURES}
MORE_IS_BETTER = frozenset({"chunks/s", "deliveries/s", "messages/s"})
