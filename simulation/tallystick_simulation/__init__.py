"""Replays a repo's history through the whole loop, on a simulated clock, over real HTTP."""
