// What the server can be asked. An answer that is an error is thrown as its sentence.
async function asked(path, options) {
  const response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  const text = await response.text();
  if (!response.ok) {
    let sentence = text;
    try { sentence = JSON.parse(text).error; } catch { /* plain words */ }
    throw new Error(sentence || `the server answered ${response.status}`);
  }
  return JSON.parse(text);
}

export function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(parameters).toString();
  return asked(query ? `${path}?${query}` : path, { signal });
}

export function post(path, content, signal = undefined) {
  return asked(path, { method: "POST", body: JSON.stringify(content), headers: { "content-type": "application/json" }, signal });
}

// Whether a question was given up by the page itself.
export const givenUp = (error) => error.name === "AbortError";
