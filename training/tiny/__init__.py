"""The recipe of the bundled model: `python -m training.tiny build-corpus | train | evaluate | plot`."""
