"""Pure functions from features to statistics to figures: no model, no image and no file is known here."""
