"""Load the metrics of all experiments of a directory, and do nothing with them."""

import json
import os
import sys

for entry in os.scandir(sys.argv[1]):
    if entry.name.isdigit():
        with open(os.path.join(entry.path, "metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
