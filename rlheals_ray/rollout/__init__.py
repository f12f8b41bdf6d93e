"""Rollouts: warm vLLM engines in a pool of Ray actors, the episode loop, and weight sync."""
