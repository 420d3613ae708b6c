"""Nipype interfaces: files in, one function call, files out."""
