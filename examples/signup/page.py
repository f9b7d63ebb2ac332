"""The page on which a person registers and watches the tasks. One file, without anything from
another host.

`progress` turns the records of the tasks into texts: a row for each task, and the sentence that the
example is about, "response left after 14 ms, mail ended after 2,014 ms". Both times run from
``add_task``. `page` puts the texts into the HTML, once. After that the script of the page follows
``/events``: each server-sent event has the whole `progress`, and the script writes the texts that
have changed. The stream ends with the tasks.

The rules of the page:

- It works without JavaScript: the form is sent, and the answer is the same page with the tasks as
  they are. It says so, because it does not follow them then.
- Values from the server are inserted as text and never as markup, here and in the script, so an
  error message cannot become a script.
- A screen reader reads a status together with its task: a row is one atomic live region. A text is
  written only when it has changed, because each write is read out.
- What is wrong with the address is tied to its field (``aria-describedby``, ``aria-invalid``), and
  the field gets the focus.
- Status and colour carry the same information, so red and green need not be told apart. Text has a
  contrast of 4.5 to 1 at least, borders 3 to 1 (WCAG 2.2 §1.4.3, §1.4.11).

Rejected: to ask for each record five times a second. It is less code by three lines, fifteen
requests a second for each open page, and a fifth of a second late.
"""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from string import Template
from typing import Any
from urllib.parse import urlencode

from minibg import TaskResult


def page(results: Sequence[TaskResult[Any]] = (), email: str = "", error: str = "") -> str:
    """Return the page: with these tasks, or with what is wrong with the address that was sent."""
    shown = progress(results)
    query = "?" + urlencode([("id", result.id) for result in results])
    return PAGE.substitute(
        email=escape(email),
        error=escape(error),
        invalid="true" if error else "false",
        summary=escape(shown["summary"]),
        rows="".join(row(**texts) for texts in shown["tasks"]),
        row=row(),
        again=AGAIN.substitute(query=escape(query)) if results else "",
    )


def row(kind: str = "", name: str = "", status: str = "", error: str = "") -> str:
    """Return the row of one task; the script fills an empty one."""
    return ROW.substitute(kind=escape(kind), name=escape(name), status=escape(status), error=escape(error))


def progress(results: Sequence[TaskResult[Any]]) -> dict[str, Any]:
    """Return the texts for the tasks of one registration, the mail first, and whether all have ended."""
    return {
        "summary": _summary(results[0]) if results else "",
        "tasks": [_texts(result) for result in results],
        "ended": all(result.is_finished for result in results),
    }


def _summary(mail: TaskResult[Any]) -> str:
    if mail.released_at is None:
        return "the response is on its way"
    left = f"response left after {_milliseconds(mail.added_at, mail.released_at)}"
    if mail.finished_at is None:
        return left
    return f"{left}, mail ended after {_milliseconds(mail.added_at, mail.finished_at)}"


def _texts(result: TaskResult[Any]) -> dict[str, str]:
    attempt = f", attempt {result.attempts}" if result.attempts > 1 else ""
    after = f" after {_milliseconds(result.added_at, result.finished_at)}" if result.finished_at else ""
    failed = result.errors and result.status != "SUCCESSFUL"
    return {
        "kind": str(result.status),
        "name": result.name.rpartition(".")[2].replace("_", " "),
        "status": f"{result.status}{attempt}{after}",
        "error": result.errors[-1].message if failed else "",
    }


def _milliseconds(start: datetime, end: datetime) -> str:
    return f"{(end - start).total_seconds() * 1000:,.0f} ms"


ROW = Template(
    '<li class="$kind" aria-atomic="true"><span class="name">$name</span> '
    '<span class="status">$status</span> <span class="error">$error</span></li>'
)
#: For a browser without JavaScript.
AGAIN = Template(
    "<noscript><p>Without JavaScript this page shows the tasks as they were when it was loaded: "
    '<a href="$query">look again</a>.</p></noscript>'
)

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Sign up</title>
<style>
  :root {
    color-scheme: light dark;
    --ground: #fbfaf8; --text: #23262b; --quiet: #62676f; --line: #85827c; --field: #fff;
    --accent: #2d5d8c; --good: #1d6f45; --bad: #b3261e; --now: #8a5a00;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ground: #17191c; --text: #e7e5e1; --quiet: #a0a5ad; --line: #7a7f87; --field: #202327;
      --accent: #8fbbe6; --good: #74c69d; --bad: #ff9c92; --now: #e9bd68;
    }
  }
  body { background: var(--ground); color: var(--text); font: 1rem/1.5 system-ui, sans-serif }
  main { max-width: 38rem; margin: 12vh auto 3rem; padding: 0 1.25rem }
  h1 { font-size: 1.5rem; margin: 0 0 .25rem }
  p { color: var(--quiet); margin: 0 }
  form { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.5rem 0 1rem }
  label { flex-basis: 100%; font-weight: 600 }
  input, button { font: inherit; padding: .55rem .8rem; border: 1px solid var(--line); border-radius: .4rem }
  input { flex: 1 1 14rem; min-width: 0; background: var(--field); color: inherit }
  button { background: var(--accent); border-color: var(--accent); color: var(--ground); font-weight: 600; cursor: pointer }
  input[aria-invalid=true] { border-color: var(--bad) }
  ::placeholder { color: var(--quiet); opacity: 1 }
  a { color: var(--accent) }
  :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
  #message { min-height: 1.5em }
  #email-error { flex-basis: 100%; color: var(--bad) }
  ol { list-style: none; margin: 1rem 0 0; padding: 0 }
  li { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; padding: .7rem 0; border-top: 1px solid var(--line) }
  .status { font-weight: 600; color: var(--quiet) }
  .RUNNING .status, .WAITING .status { color: var(--now) }
  .SUCCESSFUL .status { color: var(--good) }
  .FAILED .status, .CANCELLED .status, .DROPPED .status, .LOST .status { color: var(--bad) }
  .error { grid-column: 1 / -1; color: var(--bad); font-size: .9rem; overflow-wrap: anywhere }
  @media (max-width: 30rem) { button { flex-basis: 100% } li { grid-template-columns: 1fr } }
</style>
<main>
  <h1>Sign up</h1>
  <p>The answer comes at once. What is left to do follows it, one after another.</p>
  <form method="post" action="/">
    <label for="email">Email address</label>
    <input id="email" name="email" type="email" value="$email" required autofocus autocomplete="email"
      placeholder="you@example.org" aria-describedby="email-error" aria-invalid="$invalid">
    <button>Register</button>
    <p id="email-error">$error</p>
  </form>
  <p id="message" role="status">$summary</p>
  <ol id="tasks" aria-label="Tasks of this registration" aria-live="polite">$rows</ol>
  $again
  <template id="row">$row</template>
</main>
<script>
const [form, error, message, list, row] =
  ["form", "#email-error", "#message", "#tasks", "#row"].map(name => document.querySelector(name));
const email = form.elements.email;
let source;

form.addEventListener("submit", async event => {
  event.preventDefault();
  refuse("");
  try {
    const response = await fetch("/register?" + new URLSearchParams(new FormData(form)), {method: "POST"});
    if (response.ok) follow("?" + new URLSearchParams((await response.json()).tasks.map(task => ["id", task.id])));
    else if (response.status === 422) refuse((await response.json()).detail);
    else write(message, "The server cannot register you now: " + await response.text());
  } catch {
    write(message, "The server does not answer.");
  }
});

function refuse(reason) {
  write(error, reason);
  email.setAttribute("aria-invalid", reason !== "");
  if (reason) email.focus();
}

function follow(query) {
  history.replaceState(null, "", query);
  list.replaceChildren();
  if (source) source.close();
  source = new EventSource("/events" + query);
  source.onmessage = event => {
    const progress = JSON.parse(event.data);
    progress.tasks.forEach(show);
    write(message, progress.summary);
    if (progress.ended) source.close();
  };
  source.onerror = () => write(message, source.readyState === EventSource.CLOSED
    ? "The server does not know these tasks any more." : "The server does not answer. Trying again.");
}

function show(task, number) {
  const item = list.children[number] || list.appendChild(row.content.firstElementChild.cloneNode(true));
  item.className = task.kind;
  for (const part of ["name", "status", "error"]) write(item.querySelector("." + part), task[part]);
}

function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

if (location.search) follow(location.search);
</script>
""")
