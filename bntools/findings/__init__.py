"""What is wrong with the BatchNorms of a model: rules, and what they found. No torch here.

`RULES` is the list of them; `bntools.findings.examine` asks them, of what `bntools.findings.subject` holds.
"""

from bntools.findings.catalogue import RULES
from bntools.findings.finding import Finding, Measure, Needs, Rule, Severity, together

__all__ = ["RULES", "Finding", "Measure", "Needs", "Rule", "Severity", "together"]
