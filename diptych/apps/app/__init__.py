"""The web app: one page for each thing that people want to do with trained models (`diptych app RUN…`).

Works offline: a page asks the server it came from, and no other.
"""
