"""Routing: score prompts or answers, decide which model answers, and compare policies on recorded replies."""
