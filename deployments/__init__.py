"""Presets and deployments: data that flows read."""
