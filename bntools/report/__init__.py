"""Reports for other eyes than a terminal's."""
