"""Options of a function and options of a call, apart from the function's own arguments.

Run it::

    python -m examples.options

You will see::

    called as a function: a@example.org, timeout 3
    run as a task: mail, a@example.org, timeout 3
    a copy has other options: True 10.0 60.0
    a function of a library: math.factorial 120
    a mistake is named: timeout= is a number of seconds, above zero, not 0

``@task`` makes a function a `Task` with a name and options; it is still called as before. ``using``
returns a copy with other options, for one call or for many. ``task(f)`` does the same for a
function of a library.

Options and arguments never meet. ``timeout=3`` below is an argument of the function, in
``add_task`` and ``enqueue`` as in a call; the timeout of the task is another value. Both are typed:
mypy refuses a wrong argument, and infers that the first result's value is a string [adding.5].
"""

import asyncio
import math

from minibg import Pool, task


@task(name="mail", timeout=10)
async def send_mail(address: str, timeout: int) -> str:
    return f"{address}, timeout {timeout}"


async def main() -> None:
    async with Pool() as pool:
        print("called as a function:", await send_mail("a@example.org", timeout=3))
        result = await pool.enqueue(send_mail, "a@example.org", timeout=3).wait()
        print(f"run as a task: {result.name}, {result.return_value}")
        patient = send_mail.using(timeout=60)
        print("a copy has other options:", patient is not send_mail, send_mail.options.timeout, patient.options.timeout)
        factorial = await pool.enqueue(task(math.factorial).using(priority="high"), 5).wait()
        print("a function of a library:", factorial.name, factorial.return_value)
        try:
            send_mail.using(timeout=0)
        except ValueError as error:
            print("a mistake is named:", error)


if __name__ == "__main__":
    asyncio.run(main())
