"""Recipes for the models that the package ships; nothing in here is installed with it."""
