"""Log 1,000,000 points without a start: only the lines."""

import json

with open("experiments/1/metrics.jsonl", "w") as file:
    for step in range(1000000):
        point = {"step": step, "time": 1764150000.123 + step, "loss": 1 / (step + 1), "accuracy": step / 1e6}
        file.write(json.dumps(point) + "\n")
