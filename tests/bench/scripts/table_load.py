"""Load all that the experiments of a directory have on record, and do nothing with it."""

import json
import os
import sys

for entry in os.scandir(sys.argv[1]):
    if entry.name.isdigit():
        for name in ("args.json", "default_args.json", "metadata.json", "summary.json"):
            with open(os.path.join(entry.path, name)) as file:
                json.load(file)
        with open(os.path.join(entry.path, "STATUS")) as file:
            file.read()
