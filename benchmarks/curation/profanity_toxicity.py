"""Run by its own Python: alt-profanity-check and better-profanity over texts; whether each is toxic."""

import json
import sys
from pathlib import Path

from better_profanity import profanity
from profanity_check import predict_prob


def main() -> None:
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    profanity.load_censor_words()
    scores = {
        "alt-profanity-check": [float(p) for p in predict_prob(texts)],
        "better-profanity": [float(profanity.contains_profanity(text)) for text in texts],
    }
    print(json.dumps(scores))


main()
