"""`python -m tests.bench http`: measure minibg against what it is compared with. See README.md for the figures."""

import sys
from importlib import import_module

BENCHES = {
    "http": "CPU per request, against uvicorn with h11",
    "journal": "tasks kept on disk and finished, against Huey on SQLite",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        sys.exit(
            "\n".join(["usage: python -m tests.bench NAME", *(f"  {name}  {what}" for name, what in BENCHES.items())])
        )
    import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
