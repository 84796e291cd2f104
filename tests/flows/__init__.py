"""Tests of the flows, with real servers."""
