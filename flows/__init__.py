"""Wiring: the pipeline, its form, Prefect, and the command line."""
