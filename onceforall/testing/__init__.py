"""Conformance suites for search spaces, latency tables, accuracy predictors and devices, ours and other people's.

Subclass a suite in a test file and give it its fixtures; pytest then runs every test of the suite:

    class TestMySpace(SearchSpaceSuite):  # from onceforall.testing import SearchSpaceSuite
        @pytest.fixture
        def space(self):
            return my_space(resolutions=(32, 64))  # small ones are enough
"""

from onceforall.testing.common import members, scramble
from onceforall.testing.devices import DeviceSuite
from onceforall.testing.latency import LatencyTableSuite
from onceforall.testing.predictors import AccuracyPredictorSuite, example_labels
from onceforall.testing.spaces import SearchSpaceSuite

__all__ = [
    "AccuracyPredictorSuite",
    "DeviceSuite",
    "LatencyTableSuite",
    "SearchSpaceSuite",
    "example_labels",
    "members",
    "scramble",
]
