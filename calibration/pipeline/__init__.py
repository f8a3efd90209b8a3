"""The pipeline: a model and three prompt files in, an artifact out. `calibrate` lists its stages."""
