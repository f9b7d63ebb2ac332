"""Lessons: each file opens with how to run it and what you will see.

Start with `signup`, the example of the README: a registration, its mail, and a page that shows
them. Each of the others shows one capability:

- `hello`: FastAPI's documentation with another import line
- `pool_alone`: the queue and its workers in a script, without HTTP
- `follow`: the timeline of what happens
- `status`: the record of a run, and the counts of all runs
- `options`: options of a function, and options of a call
- `retries`, `timeouts`, `delays`: what a task may ask for
- `every`, `cron`: tasks on a schedule
- `keys`: at most one unfinished run of a kind
- `priority`: the two lanes of the queue
- `context`: a task sees the context variables of its own request
- `failing`: a handler that fails, and what becomes of its tasks
- `full_queue`: a queue without a free slot
- `watchdog`: a task that blocks the event loop, and how it is named
- `cancel`, `stopping`: runs that end early
- `durable`: a task outlives `kill -9`
- `around_fastapi`: the queue around a FastAPI application, under any server
"""
