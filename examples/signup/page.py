"""The page on which a person registers and watches the tasks. One file, nothing from outside."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign up</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --quiet: #777; --good: #1a7f4b; --bad: #c0392b; --now: #b7791f }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }
  h1 { font-size: 1.4rem; margin-bottom: .2rem }
  p { color: var(--quiet); margin-top: 0 }
  form { display: flex; gap: .5rem; margin: 1.5rem 0 }
  input { flex: 1; min-width: 0 }
  input, button { font: inherit; padding: .5rem .7rem; border: 1px solid var(--line); border-radius: .4rem }
  ol { list-style: none; padding: 0 }
  li { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; padding: .6rem 0; border-top: 1px solid var(--line) }
  .status { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--quiet) }
  .SUCCESSFUL { color: var(--good) } .FAILED { color: var(--bad) } .RUNNING, .WAITING { color: var(--now) }
  .error { grid-column: 1 / -1; color: var(--bad); overflow-wrap: anywhere }
</style>
<h1>Sign up</h1>
<p>The answer comes at once. What is left to do follows it, one after another.</p>
<form>
  <input name="email" type="email" required placeholder="you@example.org" aria-label="Email address" autofocus>
  <button>Register</button>
</form>
<p id="message" role="status"></p>
<ol id="tasks" aria-live="polite"></ol>
<script>
const final = ["SUCCESSFUL", "FAILED", "CANCELLED", "DROPPED", "LOST", "HANDED_OFF"];
const message = document.querySelector("#message"), list = document.querySelector("#tasks");

document.querySelector("form").addEventListener("submit", async event => {
  event.preventDefault();
  const email = new FormData(event.target).get("email");
  const response = await fetch("/register?" + new URLSearchParams({email}), {method: "POST"});
  const answer = await response.json();
  message.textContent = response.ok ? answer.msg : JSON.stringify(answer.detail);
  list.replaceChildren();
  (answer.tasks || []).forEach(task => watch(task, list.appendChild(document.createElement("li"))));
});

async function watch(task, row) {
  const name = row.appendChild(document.createElement("span"));
  const status = row.appendChild(document.createElement("span"));
  const error = row.appendChild(document.createElement("span"));
  name.textContent = task.name.split(".").pop();
  error.className = "error";
  do {
    const result = await (await fetch("/tasks/" + encodeURIComponent(task.id))).json();
    status.textContent = result.attempts > 1 ? `${result.status}, attempt ${result.attempts}` : result.status;
    status.className = "status " + result.status;
    error.textContent = result.errors.length ? result.errors.at(-1).message : "";
    if (final.includes(result.status)) return;
    await new Promise(later => setTimeout(later, 200));
  } while (row.isConnected);
}
</script>
"""
