"""Contract checks for a user's own rows: the checks that the rows of this package pass, in one call.

report = testing.check_design(mine, truncation=0.3)
print(report)                # a line per check
report.raise_if_failed()     # in a test of your own
"""

from airpfed.testing.aggregators import check_aggregator
from airpfed.testing.channels import check_channel
from airpfed.testing.designs import check_design
from airpfed.testing.methods import check_method
from airpfed.testing.metrics import check_metric
from airpfed.testing.optimizers import check_optimizer
from airpfed.testing.report import Report
from airpfed.testing.schemes import check_scheme
from airpfed.testing.sources import check_source
from airpfed.testing.splits import check_split
from airpfed.testing.trackers import check_tracker

__all__ = [
    "Report",
    "check_aggregator",
    "check_channel",
    "check_design",
    "check_method",
    "check_metric",
    "check_optimizer",
    "check_scheme",
    "check_source",
    "check_split",
    "check_tracker",
]
