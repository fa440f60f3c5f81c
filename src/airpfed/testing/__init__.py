"""Contract checks for a user's own rows: the checks that the rows of this package pass, in one call.

report = testing.check_design(mine, truncation=0.3)
print(report)                # a line per check
report.raise_if_failed()     # in a test of your own
"""

from airpfed.testing.channels import check_channel
from airpfed.testing.designs import check_design
from airpfed.testing.report import Report

__all__ = ["Report", "check_channel", "check_design"]
