"""Intervals and exact tests of success rates: pure numbers, no files and no policies."""
