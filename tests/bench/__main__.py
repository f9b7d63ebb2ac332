"""`python -m tests.bench http`: measure minibg against what it is compared with. See README.md for the figures."""

import sys
from importlib import import_module

BENCHES = {
    "http": "the server alone, against uvicorn with h11",
    "app": "the framework, against Starlette and FastAPI on uvicorn",
    "tasks": "a request that adds a task, against the same two",
    "pool": "the pool alone, against aiojobs and run_in_executor",
    "memory": "bytes of a waiting task and of a finished one, against Starlette",
    "journal": "tasks kept on disk and finished, against Huey on SQLite",
    "scale": "many waiting tasks, idle connections and rows",
    "start": "import, and start to the first answer, against uvicorn",
    "profile": "what a row spends its time on: ten lines of cProfile",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        lines = [f"  {name:8} {what}" for name, what in BENCHES.items()]
        sys.exit("\n".join(["usage: python -m tests.bench NAME [--rounds N] [--quick]", *lines]))
    import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
