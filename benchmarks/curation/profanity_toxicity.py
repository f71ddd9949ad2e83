"""Run by alt-profanity-check's own Python: the probability that each text is profane."""

import json
import sys
from pathlib import Path

from profanity_check import predict_prob

print(json.dumps([float(p) for p in predict_prob(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))]))
