"""Decoding: one token loop for plain, speculative, fused, constrained and searched generation."""
