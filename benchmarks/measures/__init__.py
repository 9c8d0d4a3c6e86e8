"""What is measured, each on one started server; a measurement gives figures by name.

For names in `MORE_IS_BETTER` a ratio above 1 is good, else below 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.measures import beside, fanout, http, real, resting, scale, soak, streams
from benchmarks.measures.common import FULL, QUICK, Figures, Measure, Sizes
from benchmarks.measures.resting import help_imports

__all__ = [
    "FULL",
    "MEASURES",
    "MORE_IS_BETTER",
    "QUICK",
    "TAKE_PART",
    "Figures",
    "Sizes",
    "help_imports",
]

# In the order in which they run on a server that has just been started.
MEASURES: Mapping[str, Measure] = {
    **resting.MEASURES,
    **streams.MEASURES,
    **fanout.MEASURES,
    **beside.MEASURES,
    **http.MEASURES,
    **scale.MEASURES,
    **real.MEASURES,
    **soak.MEASURES,
}
# Which peers take part; all, where nothing is said.
TAKE_PART: Mapping[str, frozenset[str]] = {
    **http.PEERS,
    **scale.PEERS,
    **real.PEERS,
    **soak.PEERS,
}
MORE_IS_BETTER = frozenset({"chunks/s", "deliveries/s", "messages/s"}) | http.RATES | scale.RATES
