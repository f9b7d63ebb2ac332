"""Lessons: each file opens with how to run it and what you will see.

Start with `signup`, the example of the README: a registration, its mail, and a page to watch them on. Then, one
capability each:

- `hello`: what FastAPI's documentation shows, with another import line
- `pool_alone`: the queue and its workers in a script, without HTTP
- `follow`: the timeline of what happens
- `status`: the record of a run, and the counts of all
- `options`: what stands on a function, and what is said at the call
- `retries`, `timeouts`, `delays`: what a task may ask for
- `every`, `cron`: again and again
- `keys`: one of a kind
- `priority`: first of all
- `context`: a task sees the context variables of its own request
- `failing`: a handler that fails, and what becomes of its tasks
- `overflow`: a full queue
- `watchdog`: a task that holds the loop, and how it is named
- `cancel`, `stopping`: how it ends before its time
- `durable`: a task outlives `kill -9`
- `around_fastapi`: around an application of somebody else, under any server
"""
