"""Recipes beside one another over seeds, with intervals that hold."""
