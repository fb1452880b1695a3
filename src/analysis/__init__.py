"""Finished runs to tables, statistics, pictures and reports."""
