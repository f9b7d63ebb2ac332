"""The page on which a person registers and watches the tasks. One file, without anything from
another host.

It asks for each task's record five times a second until the record has an end. Values from the
server are inserted as text and never as markup, so an error message cannot become a script. Status
and colour carry the same information, so red and green need not be told apart. A line is written
only when it has changed: a screen reader would otherwise read it five times a second.
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Sign up</title>
<style>
  :root {
    color-scheme: light dark;
    --ground: #fbfaf8; --text: #23262b; --quiet: #62676f; --line: #d9d7d2; --field: #fff;
    --accent: #2d5d8c; --good: #1d6f45; --bad: #b3261e; --now: #8a5a00;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ground: #17191c; --text: #e7e5e1; --quiet: #a0a5ad; --line: #383c42; --field: #202327;
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
  :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
  #message { min-height: 1.5em }
  ol { list-style: none; margin: 1rem 0 0; padding: 0 }
  li { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; padding: .7rem 0; border-top: 1px solid var(--line) }
  .status { font-weight: 600; color: var(--quiet) }
  .RUNNING, .WAITING { color: var(--now) }
  .SUCCESSFUL { color: var(--good) }
  .FAILED, .CANCELLED, .DROPPED, .LOST, .bad { color: var(--bad) }
  .error { grid-column: 1 / -1; color: var(--bad); font-size: .9rem; overflow-wrap: anywhere }
</style>
<main>
  <h1>Sign up</h1>
  <p>The answer comes at once. What is left to do follows it, one after another.</p>
  <form>
    <label for="email">Email address</label>
    <input id="email" name="email" type="email" required autocomplete="email" placeholder="you@example.org" autofocus>
    <button>Register</button>
  </form>
  <p id="message" role="status"></p>
  <ol id="tasks" aria-label="Tasks of this registration" aria-live="polite"></ol>
</main>
<script>
const message = document.querySelector("#message"), list = document.querySelector("#tasks");

document.querySelector("form").addEventListener("submit", async event => {
  event.preventDefault();
  const query = new URLSearchParams(new FormData(event.target));
  list.replaceChildren();
  try {
    const began = performance.now();
    const response = await fetch("/register?" + query, {method: "POST"});
    const answer = await response.json();
    const took = Math.round(performance.now() - began);
    say(response.ok ? `${answer.msg} (answered in ${took} ms)` : answer.detail, response.ok);
    if (response.ok) answer.tasks.forEach(watch);
  } catch {
    say("The server does not answer.", false);
  }
});

function say(text, isGood) {
  message.textContent = text;
  message.className = isGood ? "" : "bad";
}

async function watch(task) {
  const row = list.appendChild(document.createElement("li"));
  const [name, status, error] = ["name", "status", "error"].map(part => {
    const cell = row.appendChild(document.createElement("span"));
    cell.className = part;
    return cell;
  });
  name.textContent = task.name.split(".").pop().replaceAll("_", " ");
  while (row.isConnected) {
    let record;
    try {
      const response = await fetch("/tasks/" + encodeURIComponent(task.id));
      if (!response.ok) return say((await response.json()).detail, false);
      record = await response.json();
    } catch {
      return say("The server does not answer any more.", false);
    }
    const tries = record.attempts > 1 ? `, attempt ${record.attempts}` : "";
    const last = record.status === "SUCCESSFUL" ? undefined : record.errors.at(-1);
    write(status, record.status + tries);
    write(error, last ? last.message : "");
    status.className = "status " + record.status;
    if (record.finished_at) return;
    await new Promise(later => setTimeout(later, 200));
  }
}

function write(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}
</script>
"""
