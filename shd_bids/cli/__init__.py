"""The command line: parse, collect, run, tell."""
