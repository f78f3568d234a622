"""A model as a service that clients of OpenAI's interface understand, on top of the engine (`generation/engine.py`).

app.py        the routes: from a request over HTTP to its answer
fields.py     bodies taken apart field by field; protocol.py   what may be asked; answers.py   how it is answered
loop.py       the engine in a thread of its own, asked by many at once
access.py     who may ask, and how much; safety.py   what may be asked and said
telemetry.py  figures and the log
"""
