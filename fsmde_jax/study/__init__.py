"""Arms times seeds on one benchmark, with a report."""
