"""A thin face: parse, call one verb, render."""
