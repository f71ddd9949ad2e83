"""The demo: a small app calls a real local model through the gateway; Pilotfish learns, takes over and hands back."""
