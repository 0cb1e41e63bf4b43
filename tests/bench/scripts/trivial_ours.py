import argparse

from meticulous import Experiment

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--lr", type=float, default=0.1)
Experiment.add_argument_group(parser)
experiment = Experiment.from_parser(parser)
args = parser.parse_args()
for epoch in range(args.epochs):
    print("epoch", epoch, "loss", args.lr / (epoch + 1))
experiment.summary(loss=args.lr)
