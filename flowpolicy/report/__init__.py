"""Offline HTML pages and their drawings."""
