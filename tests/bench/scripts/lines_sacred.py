from sacred import SETTINGS, Experiment
from sacred.observers import FileStorageObserver

SETTINGS.CAPTURE_MODE = "sys"
experiment = Experiment("lines")
experiment.observers.append(FileStorageObserver("experiments"))


@experiment.automain
def main():
    for i in range(1000000):
        print("line", i, "of the log")
