"""Applications built on trained models. The core of the library imports nothing from here."""
