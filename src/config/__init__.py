"""The typed schema of the configuration, its hyperparameters, and job ids."""
