"""The corpus that curation is measured on, and the other tools that are measured beside it."""
