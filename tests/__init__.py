"""Tests by kind: unit, contract, e2e; a folder each."""
