"""The requests that other servers' clients send, answered from the same path, journal and keys as /v1/predict.

questions.py is what they have in common. Each protocol has a module: its bodies → columns, and our answers → its own.
"""
