"""Nipype graphs of the app: builders only, no arithmetic."""
