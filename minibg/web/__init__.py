"""ASGI <-> functions: the framework. It knows nothing of sockets, and of background tasks only how to add one.

Read in this order: `app.py` (the whole way of a request), `routing.py`, `depends.py`, then what they are made of:
`request.py`, `forms.py`, `response.py`, `fields.py`, `exceptions.py`, `threads.py`.
"""
