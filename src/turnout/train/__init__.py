"""Training on top of transformers.Trainer: pipeline, objectives, calibration, saving."""
