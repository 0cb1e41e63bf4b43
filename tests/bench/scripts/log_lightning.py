from lightning.fabric.loggers import CSVLogger

logger = CSVLogger("experiments")
for step in range(100000):
    logger.log_metrics({"loss": 1 / (step + 1), "accuracy": step / 100000, "rate": 0.1}, step)
logger.save()
