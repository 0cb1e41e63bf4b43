"""Folders of experiments, written by hand as the package and as meticulous.py write them."""

import json

SHA = "3f2a9c1d" * 5
START = "2026-03-04T05:06:07.000008"
END = "2026-03-04T06:08:10.000008"
PROCESS = {"host": "elsewhere", "pid": 7, "boot": "another", "pid-namespace": 1}


def write_experiment(
    directory,
    name,
    args=None,
    summary=None,
    status="SUCCESS",
    start=START,
    default_args=None,
    ours=True,
    **more,
):
    """Write the folder of one experiment and return its path; *more* goes into metadata."""
    folder = directory / str(name)
    folder.mkdir(parents=True)
    metadata = {
        "githead-sha": SHA,
        "githead-message": "Tune it\n",
        "description": "",
        "start-time": start,
        "command": ["train.py", "--lr", "0.1"],
    }
    if not status.startswith("RUNNING"):
        metadata["end-time"] = END
    if ours:
        attempt = {"start-time": start, "command": metadata["command"], **PROCESS}
        if "end-time" in metadata:
            attempt.update({"end-time": END, "ended": status.split("\n")[0]})
        metadata.update(place={"host": "node1", "slurm-job-id": 40}, attempts=[attempt])
    metadata.update(more)
    write_json(folder / "args.json", {"lr": 0.1} if args is None else args)
    write_json(folder / "default_args.json", default_args)
    write_json(folder / "metadata.json", metadata)
    write_json(folder / "summary.json", {"loss": 0.5} if summary is None else summary)
    (folder / "STATUS").write_text(status)
    (folder / "stdout").write_text("epoch 1\nepoch 2\n")
    (folder / "stderr").write_text("")
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value, indent=4))
