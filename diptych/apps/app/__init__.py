"""Serves a web app with one page for each thing that trained models can do (`diptych app RUN…`).

The app works offline: its pages load nothing from any other server.
"""
