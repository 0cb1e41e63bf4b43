"""Read the lines of a run's metrics as one array of JSON."""

import json
import sys

with open(sys.argv[1] + "/metrics.jsonl") as file:
    print(len(json.loads("[" + ",".join(file.read().splitlines()) + "]")))
