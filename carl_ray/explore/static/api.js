// Requests to the server. Every failure is an ApiError with one line for people.

export class ApiError extends Error {
  /** @param {number} status 0: no answer. @param {object} answer The server's JSON. */
  constructor(message, status, answer = {}) {
    super(message);
    this.status = status;
    this.answer = answer;
  }
}

/** JSON answer of the API. An aborted request rejects with AbortError. */
export async function request(path, { method = "GET", body, signal, keepalive } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      keepalive,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is carl-ray explore still running?", 0);
  }
  let answer = {};
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (response.ok) throw new ApiError(`${path}: the answer is not JSON`, response.status);
  }
  if (!response.ok) throw new ApiError(answer.error ?? `${path}: status ${response.status}`, response.status, answer);
  return answer;
}

/** Address of a query: values that are null or empty are left out. */
export function address(path, query) {
  const entries = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return entries.length ? `${path}?${new URLSearchParams(entries)}` : path;
}
