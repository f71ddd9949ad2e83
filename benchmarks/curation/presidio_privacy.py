"""Run by presidio-analyzer's own Python: its recognisers by pattern, over a blank English pipeline; spans and speed."""

import json
import sys
import tempfile
import time
from pathlib import Path

import spacy
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import NlpEngineProvider


def main() -> None:
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        # Its pipelines for names are downloads; a blank one leaves what it finds by pattern and check digits.
        spacy.blank("en").to_disk(folder)
        settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": folder}]}
        analyzer = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=settings).create_engine())
        analyzer.analyze("Warm up.", language="en")
        started = time.process_time()
        found = [[(r.start, r.end, r.entity_type) for r in analyzer.analyze(t, language="en")] for t in texts]
        seconds = time.process_time() - started
    print(json.dumps({"spans": found, "mb_per_s": sum(len(t.encode()) for t in texts) / seconds / 1e6}))


main()
