"""ASGI to functions and back: the framework. It knows no sockets, and of background tasks only how
to add one.

Read the files in the order of a request: `app.py` (its whole way), `routing.py` (which handler),
`depends.py` (which arguments), `request.py` and `forms.py` (what the client sent), `response.py`
and `files.py` (what is sent back). Below them are `fields.py` (names that repeat) and
`exceptions.py`.
"""
