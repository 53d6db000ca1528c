"""Benchmarks: every figure is measured beside its rivals in one run, after the rival was found correct."""
