"""Train the models of the zoo: `python -m qpass_models.train NAME`. Nothing else in qpass imports this package."""
