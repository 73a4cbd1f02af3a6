"""Stages, one module each, and what they stand on; no Prefect here."""
