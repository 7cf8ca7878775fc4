"""The API: raw keys in, calibrated answer out, by the champion that serves at the moment.

    python -m tasks.serving

messages.py is made of the contract, live.py holds the champion and the state, book.py writes the journal, app.py is the
web application, registry_mirror.py brings new champions from the registry. Features are made by the one features.sql.
"""
