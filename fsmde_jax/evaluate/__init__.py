"""Measuring depth: protocols, metrics, results, comparison, reports."""
