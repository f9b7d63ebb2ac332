"""The cost of looking for garbage after each test, paid once for what the imports brought."""

import gc

import hypothesis  # it asks, while it is imported, who refers to an object; of frozen ones nobody can tell


def pytest_collection_finish() -> None:
    """Some 100,000 objects of frameworks and other servers live as long as the run. `gc.collect` need not visit them again.

    It is called after each test (`tests/conftest.py`): unfrozen, that is most of the time that the tests of this folder take.
    """
    gc.collect()
    gc.freeze()
